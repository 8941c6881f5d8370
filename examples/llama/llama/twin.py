"""llama for PyTorch: transformers' own LlamaForCausalLM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.core.transformers_class import Key, ModelType, Only, TransformersClass, unsupported

LIKE = "bridge.torch.language"  # how both sides are compared
_PLAIN = {"rope_type": "default", "rope_theta": 0}


def _rope(said: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The base of the rotation, which transformers 5 keeps in `rope_parameters`."""
    rope = said.get("rope_parameters") or {}
    plain = isinstance(rope, dict) and {**rope, "rope_theta": 0} in ({"rope_theta": 0}, _PLAIN)
    if not plain:
        raise unsupported("rope_parameters", rope, "only plain rotary positions are", where)
    heads, dim = said.get("num_attention_heads", 32), said.get("hidden_size", 4096)
    width = said.get("head_dim")
    if type(heads) is type(dim) is int and width not in (None, dim // max(heads, 1)):
        raise unsupported("head_dim", width, "heads share the width evenly", where)
    return {"rope_base": rope["rope_theta"]} if "rope_theta" in rope else {}


def _writes(config: Any) -> dict[str, Any]:
    rope = _PLAIN | {"rope_theta": config.rope_base}
    return {"rope_parameters": rope, "bos_token_id": None, "eos_token_id": None}


# Source: transformers' `LlamaConfig`, and what its `LlamaForCausalLM` does with each key.
TRANSFORMERS = TransformersClass(
    format="llama",
    types={"llama": ModelType("Llama", mark=".self_attn.q_proj.weight")},
    head="ForCausalLM",
    rows=(
        Key("vocab_size", "vocab", 32_000),
        Key("hidden_size", "dim", 4096),
        Key("num_hidden_layers", "layers", 32),
        Key("num_attention_heads", "heads", 32),
        Key("num_key_value_heads", "kv_heads", lambda fields: fields.get("heads")),
        Key("intermediate_size", "hidden", 11_008),
        Key("max_position_embeddings", "context", 2048),
        Key("rope_theta", "rope_base", 10_000.0),
        Key("rms_norm_eps", "eps", 1e-6),
    ),
    only={
        "hidden_act": Only("silu"),
        "attention_bias": Only(False),
        "mlp_bias": Only(False),
        "rope_scaling": Only(None),
        "tie_word_embeddings": Only(False, written=True),
    },
    known=frozenset({"pretraining_tp", "attention_dropout", "head_dim", "rope_parameters"}),
    reads=_rope,
    writes=_writes,
)
keys, build = TRANSFORMERS.keys, TRANSFORMERS.build
