"""bwetaf for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

from bridge.torch.language import end_of_text

LIKE = "bridge.torch.language"
ONNX = "bridge.onnx.bwetaf"

# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_bwetaf.py"),)


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    end = end_of_text(config)
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
