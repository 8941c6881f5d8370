"""wigip for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

from bridge.torch.language import AUTO_CLASS as AUTO_CLASS

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_wigip.py"),)


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    return {
        "model_type": "wigip",
        "architectures": ["WigipForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_wigip.WigipConfig",
            "AutoModel": "modeling_wigip.WigipModel",
            "AutoModelForCausalLM": "modeling_wigip.WigipForCausalLM",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": 4 * config.dim,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": False,
    }


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from dataclasses import asdict

    from bridge.torch.wigip.modeling_wigip import WigipConfig, WigipModel

    return WigipModel(WigipConfig(**asdict(config)))


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 ids of full grids, the same at every call."""
    import numpy as np

    rows = 2 if config.context <= 4096 else 1
    return np.random.default_rng(0).integers(0, config.vocab, (rows, config.context), np.int32)


def given(config: Any, ids: Any) -> Any:
    """The ids of a text as a full grid, int32 [1, context]: its end, or repeated to fill it."""
    import numpy as np

    return np.resize(np.asarray(ids, np.int32)[-config.context :], (1, config.context))


def pictures(config: Any, tokens: Any) -> Any:
    """Pictures that the ids of full grids stand for, float32 [b, side, side, 3] in [0, 1].

    Args:
        config: the model's.
        tokens: int32 [b, side²], of JAX or numpy.
    """
    import numpy as np

    grid = tokens.reshape(-1, config.side, config.side, 1) * np.array([1, 37, 101], np.int32)
    return (grid % 256 / 255).astype(np.float32)


def jax_forward(model: Any, tokens: Any) -> Any:
    """float32 logits of the nnx module: [b, v], of the dense objective [b, t, v].

    With images one vector of the logits, the features of captions and pictures, and the pictures'
    predicted patches.
    """
    import jax.numpy as jnp

    from jaxmodels.wigip.images import patches, predicted

    config, tokens = model.config, jnp.asarray(tokens)
    dense = config.objective == "dense"
    logits = model.logits(model.dense(tokens)) if dense else model(tokens)[0]
    if not config.images:
        return logits
    seen = pictures(config, tokens)
    parts = (
        logits,
        model.text_features(tokens[:, : config.caption]),
        model.image_features(seen),
        predicted(model, patches(model, seen)),
    )
    return jnp.concatenate([part.reshape(-1) for part in parts])


def torch_forward(module: Any, tokens: Any) -> Any:
    """The same of the PyTorch module."""
    import torch

    config = module.config
    ids = torch.from_numpy(tokens).long()
    logits = module(ids).logits
    if not config.images:
        return logits
    seen = torch.from_numpy(pictures(config, tokens)).permute(0, 3, 1, 2)
    parts = (
        logits,
        module.get_text_features(ids[:, : config.side * config.patch]),
        module.get_image_features(seen),
        module.predicted(seen),
    )
    return torch.cat([part.flatten() for part in parts])


def torch_outputs(module: Any, tokens: Any) -> Any:
    """`torch_forward` as numpy, without gradients."""
    import torch

    with torch.no_grad():
        return torch_forward(module, tokens).numpy()


def jax_outputs(model: Any, tokens: Any) -> Any:
    """`jax_forward`, compiled, as numpy."""
    import numpy as np
    from flax import nnx

    return np.asarray(nnx.jit(jax_forward)(model, tokens))
