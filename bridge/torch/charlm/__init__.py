"""charlm for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_charlm.py"),)
# How the model card loads the directory.
AUTO_CLASS = "AutoModelForCausalLM"


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    return {
        "model_type": "charlm",
        "architectures": ["CharLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_charlm.CharLMConfig",
            "AutoModelForCausalLM": "modeling_charlm.CharLMForCausalLM",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": False,
    }


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from dataclasses import asdict

    from bridge.torch.charlm.modeling_charlm import CharLMConfig, CharLMForCausalLM

    return CharLMForCausalLM(CharLMConfig(**asdict(config)))


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 token ids [2, t], the same at every call."""
    import numpy as np

    size = (2, min(config.context, 32))
    return np.random.default_rng(0).integers(0, config.vocab, size, np.int32)


def jax_outputs(model: Any, tokens: Any) -> Any:
    """float32 logits [b, t, v] of the nnx module, as numpy."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    forward = nnx.jit(lambda model, tokens: model(tokens)[0])
    return np.asarray(forward(model, jnp.asarray(tokens)))


def torch_outputs(module: Any, tokens: Any) -> Any:
    """float32 logits [b, t, v] of the PyTorch module, as numpy."""
    import torch

    with torch.no_grad():
        return module(torch.from_numpy(tokens).long()).logits.numpy()
