"""bitgen for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

from bridge.torch.image_text import AUTO_CLASS as AUTO_CLASS
from bridge.torch.image_text import jax_outputs as jax_outputs
from bridge.torch.image_text import random_inputs
from bridge.torch.image_text import torch_outputs as torch_outputs

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_bitgen.py"),)


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
    return random_inputs(config, (2, config.slots))
