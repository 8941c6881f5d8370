"""Every string that names a parameter of charlm: sharding, PyTorch names, the seed's names."""

from jax.sharding import PartitionSpec as P

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

SHARDING = (
    ("embed/embedding", _ROWS),
    ("blocks/{i}/attn/qkv/kernel", _COLUMNS),
    ("blocks/{i}/attn/proj/kernel", _ROWS),
    ("blocks/{i}/mlp/wv/kernel", _COLUMNS),
    ("blocks/{i}/mlp/wv/bias", P("model")),
    ("blocks/{i}/mlp/out/kernel", _ROWS),
    ("head/kernel", _COLUMNS),
    ("head/bias", P("model")),
    ("*", P()),  # norms and the other biases are small
)

# Our path, the PyTorch twin's name, op (bridge/core/ops.py).
WEIGHTS = (
    ("embed/embedding", "embed.weight", "same"),
    ("blocks/{i}/norm1/scale", "blocks.{i}.norm1.weight", "same"),
    ("blocks/{i}/norm1/bias", "blocks.{i}.norm1.bias", "same"),
    ("blocks/{i}/attn/qkv/kernel", "blocks.{i}.attn.qkv.weight", "transpose"),
    ("blocks/{i}/attn/proj/kernel", "blocks.{i}.attn.proj.weight", "transpose"),
    ("blocks/{i}/attn/proj/bias", "blocks.{i}.attn.proj.bias", "same"),
    ("blocks/{i}/norm2/scale", "blocks.{i}.norm2.weight", "same"),
    ("blocks/{i}/norm2/bias", "blocks.{i}.norm2.bias", "same"),
    ("blocks/{i}/mlp/wv/kernel", "blocks.{i}.mlp.wv.weight", "transpose"),
    ("blocks/{i}/mlp/wv/bias", "blocks.{i}.mlp.wv.bias", "same"),
    ("blocks/{i}/mlp/out/kernel", "blocks.{i}.mlp.out.weight", "transpose"),
    ("blocks/{i}/mlp/out/bias", "blocks.{i}.mlp.out.bias", "same"),
    ("norm/scale", "norm.weight", "same"),
    ("norm/bias", "norm.bias", "same"),
    ("head/kernel", "head.weight", "transpose"),
    ("head/bias", "head.bias", "same"),
)

# Our path, the name in the seed's own checkpoint (an Orbax save of its nnx.Param state), op.
UPSTREAM = (
    ("embed/embedding", "embed.embedding", "same"),
    ("blocks/{i}/norm1/scale", "layers.{i}.norm1.scale", "same"),
    ("blocks/{i}/norm1/bias", "layers.{i}.norm1.bias", "same"),
    ("blocks/{i}/attn/qkv/kernel", "layers.{i}.attn.qkv.kernel", "same"),
    ("blocks/{i}/attn/proj/kernel", "layers.{i}.attn.proj.kernel", "same"),
    ("blocks/{i}/attn/proj/bias", "layers.{i}.attn.proj.bias", "same"),
    ("blocks/{i}/norm2/scale", "layers.{i}.norm2.scale", "same"),
    ("blocks/{i}/norm2/bias", "layers.{i}.norm2.bias", "same"),
    ("blocks/{i}/mlp/wv/kernel", "layers.{i}.ffn.wv_proj.kernel", "same"),
    ("blocks/{i}/mlp/wv/bias", "layers.{i}.ffn.wv_proj.bias", "same"),
    ("blocks/{i}/mlp/out/kernel", "layers.{i}.ffn.out_proj.kernel", "same"),
    ("blocks/{i}/mlp/out/bias", "layers.{i}.ffn.out_proj.bias", "same"),
    ("norm/scale", "head.layers.0.scale", "same"),
    ("norm/bias", "head.layers.0.bias", "same"),
    ("head/kernel", "head.layers.1.kernel", "same"),
    ("head/bias", "head.layers.1.bias", "same"),
)


# The seed's heads are no convention of others' files: of PyTorch's, nothing is assumed.
ASSUMED = {"WEIGHTS": {"heads": None}}
# What the seed's checkpoints hold besides parameters: the frequencies of the rotation.
BUFFERS = ("*inv_freq",)


def sizes(
    shapes: dict[str, tuple[int, ...]],
    others: dict[str, tuple[int, ...]] | None = None,
    given: dict[str, object] | None = None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Config fields that the shapes in a checkpoint determine, and those that must be assumed.

    Args:
        shapes: path → shape of every parameter.
        others: name → shape of what the checkpoint holds besides. The seed keeps the rotary
            frequencies, one for each pair of a head's numbers, which tells the head count.
        given: fields that the files or the user give; not used.

    Returns:
        what follows from the shapes, and what is the architecture's convention (the seed's
        8 heads and context of 1,024; no dropout, since the checkpoint is past training).
    """
    vocab, dim = shapes["embed/embedding"]
    hidden = shapes["blocks/0/mlp/out/kernel"][0]
    layers = len({path.split("/")[1] for path in shapes if path.startswith("blocks/")})
    known: dict[str, object] = {
        "vocab": vocab,
        "dim": dim,
        "layers": layers,
        "mlp_ratio": hidden / dim,
    }
    assumed: dict[str, object] = {"heads": 8, "context": 1024, "dropout": 0.0}
    for name, shape in (others or {}).items():
        if name.endswith("rope.inv_freq"):
            known["heads"] = dim // (2 * shape[0])
            assumed.pop("heads", None)
    return known, assumed
