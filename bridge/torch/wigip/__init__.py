"""wigip for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

from bridge.torch.language import AUTO_CLASS as AUTO_CLASS
from bridge.torch.language import torch_forward as torch_forward
from bridge.torch.language import torch_outputs as torch_outputs

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


def jax_forward(model: Any, tokens: Any) -> Any:
    """float32 logits of the nnx module: [b, v], of the dense objective [b, t, v]."""
    import jax.numpy as jnp

    tokens = jnp.asarray(tokens)
    if model.config.objective == "dense":
        return model.logits(model.dense(tokens))
    return model(tokens)[0]


def jax_outputs(model: Any, tokens: Any) -> Any:
    """`jax_forward`, compiled, as numpy."""
    import numpy as np
    from flax import nnx

    return np.asarray(nnx.jit(jax_forward)(model, tokens))
