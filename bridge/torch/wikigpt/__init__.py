"""wikigpt for PyTorch: transformers' own GPT-2, so that no file needs to travel along."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.core.transformers_class import Key, ModelType, Only, TransformersClass, unsupported
from bridge.torch.language import end_of_text

LIKE = "bridge.torch.language"
ONNX = "bridge.onnx.wikigpt"

# Files that travel with every model directory.
FILES: tuple[Path, ...] = ()

_TIE = "tie_word_embeddings"
_GELU = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_new": "tanh",
    "gelu_accurate": "tanh",
    "gelu_fast": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_pytorch_tanh": "tanh",
}


def _four_times_the_width(fields: Mapping[str, Any]) -> int | None:
    dim = fields.get("dim")
    return 4 * dim if type(dim) is int else None


def _vocab(fields: Mapping[str, Any]) -> Any:
    return fields.get("vocab")


def _writes(config: Any) -> dict[str, Any]:
    end = end_of_text(config)
    return {"bos_token_id": end, "eos_token_id": end, _TIE: True}


def _check(config_json: Mapping[str, Any], names: Iterable[str], where: Path) -> list[str]:
    """Checks pruned heads, and that a head which is not tied is there: its values are compared
    with the embedding's when the tensors are matched."""
    if pruned := config_json.get("pruned_heads"):
        raise unsupported("pruned_heads", pruned, "all blocks have the same heads", where)
    if config_json.get(_TIE, True):
        return []
    for ends in (("lm_head.weight", "lm_head.decoder.weight"), ("wte.weight",)):
        if not any(name.endswith(ends) for name in names):
            raise unsupported(_TIE, config_json.get(_TIE), f"{ends[0]} is missing", where)
    return [f"{_TIE} is false, but the head equals the embedding: here it is tied"]


def _nanogpt(
    config_json: Mapping[str, Any], where: Path
) -> tuple[dict[str, Any], list[str]] | None:
    """nanoGPT's arguments, which a hub mixin saves as config.json."""
    from bridge.formats import nanogpt_args

    if "block_size" not in config_json:
        return None
    return nanogpt_args.fields(dict(config_json), where), nanogpt_args.idle_notes(dict(config_json))


# Source: transformers' `GPT2Config`, and what its `GPT2LMHeadModel` does with each key.
TRANSFORMERS = TransformersClass(
    format="gpt2",
    types={"gpt2": ModelType("GPT2", mark=".attn.c_attn.weight")},
    head="LMHeadModel",
    rows=(
        Key("vocab_size", "vocab", 50_257),
        Key("n_positions", "context", 1024, aliases=("max_position_embeddings",)),
        Key("n_embd", "dim", 768, aliases=("hidden_size",)),
        Key("n_layer", "layers", 12, aliases=("num_hidden_layers",)),
        Key("n_head", "heads", 12, aliases=("num_attention_heads",)),
        Key("n_inner", "hidden", _four_times_the_width),
        Key("activation_function", "gelu", "tanh", values=_GELU),
        Key("resid_pdrop", "dropout", 0.1, copies=("embd_pdrop", "attn_pdrop")),
    ),
    only={
        "layer_norm_epsilon": Only(1e-5, written=True),
        "scale_attn_weights": Only(True),
        "scale_attn_by_inverse_layer_idx": Only(False),
        "add_cross_attention": Only(False),
        "is_causal": Only(True),
    },
    # A model without biases has zeros in their place there (bridge/checkpoint/zeros.py).
    own={"bias": True, "tokens": _vocab},
    settled={_TIE: True},
    known=frozenset({"reorder_and_upcast_attn", "n_ctx", "summary_*", "pruned_heads"}),
    writes=_writes,
    check=_check,
    other=_nanogpt,
)
keys, build = TRANSFORMERS.keys, TRANSFORMERS.build


def whole(config: Any) -> Any:
    """With biases, which GPT2LMHeadModel always has (bridge/checkpoint/zeros.py)."""
    return replace(config, bias=True)
