"""Every string that names a parameter of llama: sharding, and the names of LlamaForCausalLM."""

from jax.sharding import PartitionSpec as P

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

SHARDING = (
    ("embed/embedding", _ROWS),
    ("blocks/{i}/attn/proj/kernel", _ROWS),
    ("blocks/{i}/mlp/down/kernel", _ROWS),
    ("*/kernel", _COLUMNS),  # q, k, v, gate, up, and the head
    ("*", P()),  # norms
)

_BLOCK = "model.layers.{i}."

# Our path, transformers' name, op (bridge/core/ops.py): its kernels are [out, in].
WEIGHTS = (
    ("embed/embedding", "model.embed_tokens.weight", "same"),
    ("blocks/{i}/norm1/scale", _BLOCK + "input_layernorm.weight", "same"),
    ("blocks/{i}/attn/q/kernel", _BLOCK + "self_attn.q_proj.weight", "transpose"),
    ("blocks/{i}/attn/k/kernel", _BLOCK + "self_attn.k_proj.weight", "transpose"),
    ("blocks/{i}/attn/v/kernel", _BLOCK + "self_attn.v_proj.weight", "transpose"),
    ("blocks/{i}/attn/proj/kernel", _BLOCK + "self_attn.o_proj.weight", "transpose"),
    ("blocks/{i}/norm2/scale", _BLOCK + "post_attention_layernorm.weight", "same"),
    ("blocks/{i}/mlp/gate/kernel", _BLOCK + "mlp.gate_proj.weight", "transpose"),
    ("blocks/{i}/mlp/up/kernel", _BLOCK + "mlp.up_proj.weight", "transpose"),
    ("blocks/{i}/mlp/down/kernel", _BLOCK + "mlp.down_proj.weight", "transpose"),
    ("norm/scale", "model.norm.weight", "same"),
    ("head/kernel", "lm_head.weight", "transpose"),
)

# Older files hold the frequencies of the rotation.
BUFFERS = ("*.rotary_emb.inv_freq",)


def sizes(
    shapes: dict[str, tuple[int, ...]],
    others: dict[str, tuple[int, ...]] | None = None,
    given: dict[str, object] | None = None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Config fields that the shapes of a checkpoint determine, and those to assume.

    No shape tells the heads: the files or the user give them, and `kv_heads` follows.
    """
    vocab, dim = shapes["embed/embedding"]
    keys, heads = shapes["blocks/0/attn/k/kernel"][1], (given or {}).get("heads")
    known: dict[str, object] = {
        "vocab": vocab,
        "dim": dim,
        "layers": len({path.split("/")[1] for path in shapes if path.startswith("blocks/")}),
        "hidden": shapes["blocks/0/mlp/up/kernel"][1],
    }
    assumed: dict[str, object] = {
        "heads": None,
        "kv_heads": keys * heads // dim if isinstance(heads, int) else None,
        "context": 2048,
        "rope_base": 10_000.0,
        "eps": 1e-6,
    }
    return known, assumed
