"""charlm for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

LIKE = "bridge.torch.language"
ONNX = "bridge.onnx.charlm"

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_charlm.py"),)


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
