"""Every string that names a parameter of bwetaf: sharding, PyTorch names, the seed's names."""

from jax.sharding import PartitionSpec as P

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

SHARDING = (
    ("embed/embedding", _ROWS),
    ("blocks/{i}/attn/q/kernel", _COLUMNS),
    ("blocks/{i}/attn/k/kernel", _COLUMNS),
    ("blocks/{i}/attn/v/kernel", _COLUMNS),
    ("blocks/{i}/attn/proj/kernel", _ROWS),
    ("blocks/{i}/mlp/wv/kernel", _COLUMNS),
    ("blocks/{i}/mlp/out/kernel", _ROWS),
    ("*", P()),  # norms and biases are small
)

# Our path, the PyTorch twin's name, op (bridge/core/ops.py). The head is the embedding.
WEIGHTS = (
    ("embed/embedding", "embed.weight", "same"),
    ("blocks/{i}/norm1/scale", "blocks.{i}.norm1.weight", "same"),
    ("blocks/{i}/attn/q/kernel", "blocks.{i}.attn.q.weight", "transpose"),
    ("blocks/{i}/attn/k/kernel", "blocks.{i}.attn.k.weight", "transpose"),
    ("blocks/{i}/attn/v/kernel", "blocks.{i}.attn.v.weight", "transpose"),
    ("blocks/{i}/attn/proj/kernel", "blocks.{i}.attn.proj.weight", "transpose"),
    ("blocks/{i}/attn/proj/bias", "blocks.{i}.attn.proj.bias", "same"),
    ("blocks/{i}/norm2/scale", "blocks.{i}.norm2.weight", "same"),
    ("blocks/{i}/mlp/wv/kernel", "blocks.{i}.mlp.wv.weight", "transpose"),
    ("blocks/{i}/mlp/out/kernel", "blocks.{i}.mlp.out.weight", "transpose"),
    ("blocks/{i}/mlp/out/bias", "blocks.{i}.mlp.out.bias", "same"),
)

# Our path, the name in the seed's own checkpoint (its msgpack tree, joined with dots), op.
UPSTREAM = (
    ("embed/embedding", "emb.embedding", "same"),
    ("blocks/{i}/norm1/scale", "blocks_{i}.ln1.scale", "same"),
    ("blocks/{i}/attn/q/kernel", "blocks_{i}.attn.q_dense.w", "same"),
    ("blocks/{i}/attn/k/kernel", "blocks_{i}.attn.k_dense.w", "same"),
    ("blocks/{i}/attn/v/kernel", "blocks_{i}.attn.v_dense.w", "same"),
    ("blocks/{i}/attn/proj/kernel", "blocks_{i}.attn.d_out.w", "same"),
    ("blocks/{i}/attn/proj/bias", "blocks_{i}.attn.d_out.b", "row"),
    ("blocks/{i}/norm2/scale", "blocks_{i}.ln2.scale", "same"),
    ("blocks/{i}/mlp/wv/kernel", "blocks_{i}.d1.w", "same"),
    ("blocks/{i}/mlp/out/kernel", "blocks_{i}.d2.w", "same"),
    ("blocks/{i}/mlp/out/bias", "blocks_{i}.d2.b", "row"),
)


# The seed's heads are no convention of other files: of PyTorch's and our own nothing is assumed.
ASSUMED = {"WEIGHTS": {"heads": None}, "own": {"heads": None}}


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
        what follows from the shapes, and what is the architecture's convention (the seed's
        head width of 64, its context and GPT-2's 50,257 tokens; no dropout, since the
        checkpoint is past training).
    """
    vocab, dim = shapes["embed/embedding"]
    known: dict[str, object] = {
        "vocab": vocab,
        "dim": dim,
        "layers": len({path.split("/")[1] for path in shapes if path.startswith("blocks/")}),
        "hidden": shapes["blocks/0/mlp/out/kernel"][0],
    }
    assumed: dict[str, object] = {
        "tokens": 50_257 if vocab == 50_260 else vocab,
        "heads": None if dim % 64 else dim // 64,
        "context": 2048,
        "dropout": 0.0,
    }
    return known, assumed
