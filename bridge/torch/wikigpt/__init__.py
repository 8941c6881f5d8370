"""wikigpt for PyTorch: transformers' own GPT-2, so that no file needs to travel along."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Files that travel with every model directory.
FILES: tuple[Path, ...] = ()
# How the model card loads the directory.
AUTO_CLASS = "AutoModelForCausalLM"

GPT2_TOKENS = 50_257
END_OF_TEXT = GPT2_TOKENS - 1


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    end = END_OF_TEXT if config.tokens == GPT2_TOKENS else None
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "n_embd": config.dim,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "activation_function": {"exact": "gelu", "tanh": "gelu_new"}[config.gelu],
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
    }


def whole(config: Any) -> Any:
    """The config whose parameters GPT2LMHeadModel always has: with biases (see bridge/zeros.py)."""
    return replace(config, bias=True)


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**asdict(config), **keys(config)))


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
