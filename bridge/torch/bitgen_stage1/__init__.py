"""bitgen_stage1 for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

from bridge.torch import image_text
from bridge.torch.image_text import PROCESSING, SIMILARITY, random_inputs

LIKE = "bridge.torch.image_text"
# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_bitgen_stage1.py"), PROCESSING)
# The model has no mask: it was trained to see padding.
TOKENIZER = {**image_text.TOKENIZER, "model_input_names": ["input_ids"]}

_LACKS = """BitGen Stage 1 writes no captions: its decoder reconstructs the text that it is given.
Its memory is read in every call, and written by training only."""


def usage(config: Any, text: bool) -> str:
    """The model card's snippet, which needs the tokeniser, and what the model cannot do."""
    return "\n\n".join((SIMILARITY, _LACKS)) if text else _LACKS


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    return {
        "model_type": "bitgen_stage1",
        "architectures": ["BitGenStage1Model"],
        "auto_map": {
            "AutoConfig": "modeling_bitgen_stage1.BitGenStage1Config",
            "AutoModel": "modeling_bitgen_stage1.BitGenStage1Model",
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

    from bridge.torch.bitgen_stage1.modeling_bitgen_stage1 import (
        BitGenStage1Config,
        BitGenStage1Model,
    )

    return BitGenStage1Model(BitGenStage1Config(**asdict(config)))


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 ids [2, t], images [2, y, x, 3], noise [m, d]."""
    return random_inputs(config, (config.slots, config.dim))
