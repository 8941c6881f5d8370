"""bwetaf for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_bwetaf.py"),)
# How the model card loads the directory.
AUTO_CLASS = "AutoModelForCausalLM"

GPT2_TOKENS = 50_257


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    end = GPT2_TOKENS - 1 if config.tokens == GPT2_TOKENS else None
    return {
        "model_type": "bwetaf",
        "architectures": ["BwetafForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_bwetaf.BwetafConfig",
            "AutoModelForCausalLM": "modeling_bwetaf.BwetafForCausalLM",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
    }


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from dataclasses import asdict

    from bridge.torch.bwetaf.modeling_bwetaf import BwetafConfig, BwetafForCausalLM

    return BwetafForCausalLM(BwetafConfig(**asdict(config)))


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 token ids [2, t], the same at every call."""
    import numpy as np

    size = (2, min(config.context, 32))
    return np.random.default_rng(0).integers(0, config.tokens, size, np.int32)


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
