"""bitgen for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_bitgen.py"),)
# How the model card loads the directory.
AUTO_CLASS = "AutoModel"

_OUTPUTS = ("embeddings", "text_features", "image_features", "decoder_logits")


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    return {
        "model_type": "bitgen",
        "architectures": ["BitGenModel"],
        "auto_map": {
            "AutoConfig": "modeling_bitgen.BitGenConfig",
            "AutoModel": "modeling_bitgen.BitGenModel",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "tie_word_embeddings": False,
    }


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from dataclasses import asdict

    from bridge.torch.bitgen.modeling_bitgen import (
        BitGenConfig,
        BitGenModel,
    )

    return BitGenModel(BitGenConfig(**asdict(config)))


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 ids [2, t], images [2, y, x, 3], noise [2, m]."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (2, min(config.context, 32)), np.int32)
    images = rng.random((2, 48, 60, 3))
    return tokens, images, rng.standard_normal((2, config.slots))


def jax_outputs(model: Any, inputs: Any) -> Any:
    """All outputs of the nnx module, in a row, as numpy.

    Computed in float64: an activation that lies between two of the decoder's 8-bit numbers would
    go the one way here and the other way there, for the last bit of a float32.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxmodels.runtime.paths import split

    graphdef, *held = split(model)
    # What float32 holds is exact in float64; arrays of the host take no dtype of the device's.
    held = [{path: np.asarray(array) for path, array in arrays.items()} for arrays in held]
    with jax.enable_x64(True):
        wide = [{path: _double(array) for path, array in arrays.items()} for arrays in held]
        tokens, images, noise = (jnp.asarray(array) for array in inputs)

        @jax.jit
        def forward(params: Any, rest: Any) -> Any:
            return graphdef.merge(params, rest)(tokens, images, targets=tokens, noise=noise)

        out = forward(*wide)
        return np.concatenate([np.ravel(getattr(out, name)) for name in _OUTPUTS])


def _double(array: Any) -> Any:
    import numpy as np

    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float64)


def torch_outputs(module: Any, inputs: Any) -> Any:
    """The same of the PyTorch module."""
    import numpy as np
    import torch

    tokens, images, noise = (torch.from_numpy(array) for array in inputs)
    with torch.no_grad():
        out = module.double()(tokens.long(), images.permute(0, 3, 1, 2), tokens.long(), noise)
    return np.concatenate([out[name].numpy().ravel() for name in _OUTPUTS])
