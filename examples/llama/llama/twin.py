"""llama for PyTorch: transformers' own LlamaForCausalLM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.core.transformers_class import Key, ModelType, Only, TransformersClass, unsupported
from bridge.torch.language import (
    example,
    given,
    jax_forward,
    jax_outputs,
    torch_forward,
    torch_outputs,
)

__all__ = ["example", "given", "jax_forward", "jax_outputs", "torch_forward", "torch_outputs"]
AUTO_CLASS = "AutoModelForCausalLM"
_PLAIN = {"rope_type": "default"}


def _rope(said: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The base of the rotation, which transformers 5 keeps in `rope_parameters`."""
    rope = said.get("rope_parameters") or {}
    if {k: v for k, v in rope.items() if k != "rope_theta"} not in ({}, _PLAIN):
        raise unsupported("rope_parameters", rope, "only plain rotary positions are", where)
    heads, dim, width = (said.get(k) for k in ("num_attention_heads", "hidden_size", "head_dim"))
    if width is not None and width * (heads or 32) != (dim or 4096):
        raise unsupported("head_dim", width, "heads share the width evenly", where)
    return {"rope_base": float(rope["rope_theta"])} if "rope_theta" in rope else {}


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
    writes=lambda config: {"rope_parameters": {"rope_theta": config.rope_base, **_PLAIN}},
)
keys, build = TRANSFORMERS.keys, TRANSFORMERS.build
