"""Every string that names a parameter of wikigpt: sharding, GPT-2's names, nanoGPT's names.

The rows of biases are there for models that have them; `Config.bias` decides.
"""

from jax.sharding import PartitionSpec as P

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

SHARDING = (
    ("embed/embedding", _ROWS),
    ("pos/embedding", P(None, "data")),
    ("blocks/{i}/attn/qkv/kernel", _COLUMNS),
    ("blocks/{i}/attn/qkv/bias", P("model")),
    ("blocks/{i}/attn/proj/kernel", _ROWS),
    ("blocks/{i}/mlp/up/kernel", _COLUMNS),
    ("blocks/{i}/mlp/up/bias", P("model")),
    ("blocks/{i}/mlp/out/kernel", _ROWS),
    ("*", P()),  # norms and the other biases are small
)


def _rows(kernel: str) -> tuple[tuple[str, str, str], ...]:
    """Both sides name their tensors alike; only the layout of kernels differs."""
    block, theirs = "blocks/{i}", "transformer.h.{i}"
    return (
        ("embed/embedding", "transformer.wte.weight", "same"),
        ("pos/embedding", "transformer.wpe.weight", "same"),
        (f"{block}/norm1/scale", f"{theirs}.ln_1.weight", "same"),
        (f"{block}/norm1/bias", f"{theirs}.ln_1.bias", "same"),
        (f"{block}/attn/qkv/kernel", f"{theirs}.attn.c_attn.weight", kernel),
        (f"{block}/attn/qkv/bias", f"{theirs}.attn.c_attn.bias", "same"),
        (f"{block}/attn/proj/kernel", f"{theirs}.attn.c_proj.weight", kernel),
        (f"{block}/attn/proj/bias", f"{theirs}.attn.c_proj.bias", "same"),
        (f"{block}/norm2/scale", f"{theirs}.ln_2.weight", "same"),
        (f"{block}/norm2/bias", f"{theirs}.ln_2.bias", "same"),
        (f"{block}/mlp/up/kernel", f"{theirs}.mlp.c_fc.weight", kernel),
        (f"{block}/mlp/up/bias", f"{theirs}.mlp.c_fc.bias", "same"),
        (f"{block}/mlp/out/kernel", f"{theirs}.mlp.c_proj.weight", kernel),
        (f"{block}/mlp/out/bias", f"{theirs}.mlp.c_proj.bias", "same"),
        ("norm/scale", "transformer.ln_f.weight", "same"),
        ("norm/bias", "transformer.ln_f.bias", "same"),
    )


# Our path, the name in transformers' GPT2LMHeadModel, op: its kernels are [in, out], as ours.
WEIGHTS = _rows("same")

# Our path, the name in nanoGPT's checkpoint, op: its kernels are [out, in].
UPSTREAM = _rows("transpose")

_BLOCK = "blk.{i}."

# Our path, the name in llama.cpp's GGUF files, op: its kernels are [out, in].
GGUF = (
    ("embed/embedding", "token_embd.weight", "same"),
    ("pos/embedding", "position_embd.weight", "same"),
    ("blocks/{i}/norm1/scale", _BLOCK + "attn_norm.weight", "same"),
    ("blocks/{i}/norm1/bias", _BLOCK + "attn_norm.bias", "same"),
    ("blocks/{i}/attn/qkv/kernel", _BLOCK + "attn_qkv.weight", "transpose"),
    ("blocks/{i}/attn/qkv/bias", _BLOCK + "attn_qkv.bias", "same"),
    ("blocks/{i}/attn/proj/kernel", _BLOCK + "attn_output.weight", "transpose"),
    ("blocks/{i}/attn/proj/bias", _BLOCK + "attn_output.bias", "same"),
    ("blocks/{i}/norm2/scale", _BLOCK + "ffn_norm.weight", "same"),
    ("blocks/{i}/norm2/bias", _BLOCK + "ffn_norm.bias", "same"),
    ("blocks/{i}/mlp/up/kernel", _BLOCK + "ffn_up.weight", "transpose"),
    ("blocks/{i}/mlp/up/bias", _BLOCK + "ffn_up.bias", "same"),
    ("blocks/{i}/mlp/out/kernel", _BLOCK + "ffn_down.weight", "transpose"),
    ("blocks/{i}/mlp/out/bias", _BLOCK + "ffn_down.bias", "same"),
    ("norm/scale", "output_norm.weight", "same"),
    ("norm/bias", "output_norm.bias", "same"),
)

# A further name on their side, and our path whose values it repeats: the head. Either may be
# missing from a file.
TIED = (("lm_head.weight", "embed/embedding"),)
# The same under names that we never write: DialoGPT's.
ALSO_TIED = (("lm_head.decoder.weight", "embed/embedding"),)

# In front of their names, but for a file that holds only the part without the head.
PREFIX = "transformer."
# Heads for other tasks, which go with the same model: transformers' classes, trl's.
OTHER_HEADS = ("multiple_choice_head.*", "score.*", "classifier.*", "qa_outputs.*", "v_head.*",
               "value_head.*", "reward_head.*", "classification_head.*", "cls_head.*")  # fmt: skip
# What its files hold besides parameters: the causal mask of older ones.
BUFFERS = ("*.attn.bias", "*.attn.masked_bias")

# What is assumed otherwise of a file that follows a table: nanoGPT's GELU, our Config's.
ASSUMED = {"UPSTREAM": {"gelu": "exact"}, "own": {"gelu": "exact"}}

# nanoGPT rounds up the rows of GPT-2's embedding.
GPT2_TOKENS, GPT2_ROWS = 50_257, 50_304
# Width and layers of the models that OpenAI published: their heads are 64 wide.
_PUBLISHED = {(768, 12), (1024, 24), (1280, 36), (1600, 48)}


def sizes(
    shapes: dict[str, tuple[int, ...]],
    others: dict[str, tuple[int, ...]] | None = None,
    given: dict[str, object] | None = None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Config fields that the shapes in a checkpoint determine, and those that must be assumed.

    Args:
        shapes: path → shape of every parameter.
        others: name → shape of the other tensors in the checkpoint; not used.
        given: fields that the files or the user give; not used.

    Returns:
        what follows from the shapes, and what is the architecture's convention: heads of width
        64 in the sizes that OpenAI published (None in others: nothing tells them), GPT-2's tanh
        GELU, GPT-2's 50,257 tokens in nanoGPT's 50,304 rows, no dropout.
    """
    vocab, dim = shapes["embed/embedding"]
    known: dict[str, object] = {
        "vocab": vocab,
        "dim": dim,
        "layers": len({path.split("/")[1] for path in shapes if path.startswith("blocks/")}),
        "hidden": shapes["blocks/0/mlp/up/kernel"][1],
        "context": shapes["pos/embedding"][0],
        "bias": any(path.endswith("/bias") for path in shapes),
    }
    assumed: dict[str, object] = {
        "tokens": GPT2_TOKENS if vocab == GPT2_ROWS else vocab,
        "heads": dim // 64 if (dim, known["layers"]) in _PUBLISHED else None,
        "dropout": 0.0,
        "gelu": "tanh",
    }
    return known, assumed
