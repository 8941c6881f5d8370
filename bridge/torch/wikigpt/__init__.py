"""wikigpt for PyTorch: transformers' own GPT-2, so that no file needs to travel along."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bridge.torch.language import *  # noqa: F403
from bridge.torch.language import end_of_text

# Files that travel with every model directory.
FILES: tuple[Path, ...] = ()


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    end = end_of_text(config)
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
    """With biases, which GPT2LMHeadModel always has (bridge/checkpoint/zeros.py)."""
    return replace(config, bias=True)


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**asdict(config), **keys(config)))
