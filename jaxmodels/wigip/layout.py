"""Every string that names a parameter of wigip: sharding, PyTorch names, the seed's names."""

from jax.sharding import PartitionSpec as P

# Under these paths the blocks' arrays are stacked: "blocks/norm1/scale" [layers, d] of a run is
# "blocks/{i}/norm1/scale" [d] in the tables below and in the bridge.
SCANNED = ("blocks",)

# The blocks' kernels are split along heads and hidden units, which divide into whole TPU tiles; the
# width (2,496 over 16 devices) does not, and gathering such pieces yields a layout that doubles the
# time of the following product.
BOTH = ("model", "data")

SHARDING = (
    ("patch/kernel", P(None, None, "model", "data")),
    ("pos/embedding", P(None, "data")),
    ("blocks/attn/q/kernel", P(None, None, BOTH)),
    ("blocks/attn/k/kernel", P(None, None, BOTH)),
    ("blocks/attn/v/kernel", P(None, None, BOTH)),
    ("blocks/attn/q/bias", P(None, "model")),
    ("blocks/attn/k/bias", P(None, "model")),
    ("blocks/attn/v/bias", P(None, "model")),
    ("blocks/attn/proj/kernel", P(None, BOTH)),
    ("blocks/mlp/up/kernel", P(None, None, BOTH)),
    ("blocks/mlp/up/bias", P(None, "model")),
    ("blocks/mlp/out/kernel", P(None, BOTH)),
    ("head/kernel", P("data", "model")),
    ("head/bias", P("model")),
    ("images/text_pool/kernel", P("data", "model")),
    ("images/image_pool/kernel", P("data", "model")),
    ("images/head/kernel", P("data", "model")),
    ("images/head/bias", P("model")),
    ("*", P()),  # norms, the other biases and the narrow embedding are small
)

# Parameters of a model with `images`, besides the temperature.
_IMAGE_LAYERS = ("colour", "head", "text_pool", "image_pool")

# Our path, the PyTorch twin's name, op (bridge/core/ops.py).
WEIGHTS = (
    ("embed/embedding", "embed.weight", "same"),
    ("patch/kernel", "patch.weight", "convolution"),
    ("patch/bias", "patch.bias", "same"),
    ("pos/embedding", "pos.weight", "same"),
    ("blocks/{i}/norm1/scale", "blocks.{i}.norm1.weight", "same"),
    ("blocks/{i}/norm1/bias", "blocks.{i}.norm1.bias", "same"),
    ("blocks/{i}/attn/q/kernel", "blocks.{i}.attn.q.weight", "to_heads"),
    ("blocks/{i}/attn/q/bias", "blocks.{i}.attn.q.bias", "flat"),
    ("blocks/{i}/attn/k/kernel", "blocks.{i}.attn.k.weight", "to_heads"),
    ("blocks/{i}/attn/k/bias", "blocks.{i}.attn.k.bias", "flat"),
    ("blocks/{i}/attn/v/kernel", "blocks.{i}.attn.v.weight", "to_heads"),
    ("blocks/{i}/attn/v/bias", "blocks.{i}.attn.v.bias", "flat"),
    ("blocks/{i}/attn/proj/kernel", "blocks.{i}.attn.proj.weight", "from_heads"),
    ("blocks/{i}/attn/proj/bias", "blocks.{i}.attn.proj.bias", "same"),
    ("blocks/{i}/norm2/scale", "blocks.{i}.norm2.weight", "same"),
    ("blocks/{i}/norm2/bias", "blocks.{i}.norm2.bias", "same"),
    ("blocks/{i}/mlp/up/kernel", "blocks.{i}.mlp.up.weight", "transpose"),
    ("blocks/{i}/mlp/up/bias", "blocks.{i}.mlp.up.bias", "same"),
    ("blocks/{i}/mlp/out/kernel", "blocks.{i}.mlp.out.weight", "transpose"),
    ("blocks/{i}/mlp/out/bias", "blocks.{i}.mlp.out.bias", "same"),
    ("norm/scale", "norm.weight", "same"),
    ("norm/bias", "norm.bias", "same"),
    ("head/kernel", "head.weight", "transpose"),
    ("head/bias", "head.bias", "same"),
    *(
        row
        for name in _IMAGE_LAYERS
        for row in (
            (f"images/{name}/kernel", f"images.{name}.weight", "transpose"),
            (f"images/{name}/bias", f"images.{name}.bias", "same"),
        )
    ),
    ("images/log_temperature", "images.log_temperature", "same"),
)

_BLOCK = "CheckpointAttentionBlock_{i}."
_HEADS = _BLOCK + "SelfAttention_0."

# Our path, the name in the seed's own checkpoint (its pickled tree, joined with dots), op.
UPSTREAM = (
    ("embed/embedding", "Embed_0.embedding", "same"),
    ("patch/kernel", "PatchEmbedding_0.Conv_0.kernel", "same"),
    ("patch/bias", "PatchEmbedding_0.Conv_0.bias", "same"),
    ("pos/embedding", "pos_emb", "one"),
    ("blocks/{i}/norm1/scale", _BLOCK + "LayerNorm_0.scale", "same"),
    ("blocks/{i}/norm1/bias", _BLOCK + "LayerNorm_0.bias", "same"),
    ("blocks/{i}/attn/q/kernel", _HEADS + "query.kernel", "same"),
    ("blocks/{i}/attn/q/bias", _HEADS + "query.bias", "same"),
    ("blocks/{i}/attn/k/kernel", _HEADS + "key.kernel", "same"),
    ("blocks/{i}/attn/k/bias", _HEADS + "key.bias", "same"),
    ("blocks/{i}/attn/v/kernel", _HEADS + "value.kernel", "same"),
    ("blocks/{i}/attn/v/bias", _HEADS + "value.bias", "same"),
    ("blocks/{i}/attn/proj/kernel", _HEADS + "out.kernel", "same"),
    ("blocks/{i}/attn/proj/bias", _HEADS + "out.bias", "same"),
    ("blocks/{i}/norm2/scale", _BLOCK + "LayerNorm_1.scale", "same"),
    ("blocks/{i}/norm2/bias", _BLOCK + "LayerNorm_1.bias", "same"),
    ("blocks/{i}/mlp/up/kernel", _BLOCK + "Dense_0.kernel", "same"),
    ("blocks/{i}/mlp/up/bias", _BLOCK + "Dense_0.bias", "same"),
    ("blocks/{i}/mlp/out/kernel", _BLOCK + "Dense_1.kernel", "same"),
    ("blocks/{i}/mlp/out/bias", _BLOCK + "Dense_1.bias", "same"),
    ("norm/scale", "LayerNorm_0.scale", "same"),
    ("norm/bias", "LayerNorm_0.bias", "same"),
    ("head/kernel", "Dense_0.kernel", "same"),
    ("head/bias", "Dense_0.bias", "same"),
    # Ours, of the second phase: the authors' code ignores such keys.
    *(
        (f"images/{name}/{part}", f"Images_0.{name}.{part}", "same")
        for name in _IMAGE_LAYERS
        for part in ("kernel", "bias")
    ),
    ("images/log_temperature", "Images_0.log_temperature", "same"),
)


# Config fields that `--init` may change: they add parameters for images, or weigh their losses.
ADDED = ("images", "image_weight")

# The seed's head width holds for its own files only; for others nothing is assumed.
ASSUMED = {"WEIGHTS": {"heads": None}, "own": {"heads": None}}


def sizes(
    shapes: dict[str, tuple[int, ...]],
    others: dict[str, tuple[int, ...]] | None = None,
    given: dict[str, object] | None = None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Config fields that the shapes in a checkpoint determine, and those that must be assumed.

    Args:
        shapes: path → shape of every parameter, each block's apart. PyTorch's kernels are flat
            and do not tell the heads; the seed's do.
        others: name → shape of the other tensors in the checkpoint; not used.
        given: fields that the files or the user give; not used.

    Returns:
        the fields that follow from the shapes, and those that are assumed (the seed's head width of
        78, if it divides the width; its objective).
    """
    patch, dim = shapes["patch/kernel"][0], shapes["patch/kernel"][-1]
    known: dict[str, object] = {
        "vocab": shapes["embed/embedding"][0],
        "side": round(shapes["pos/embedding"][0] ** 0.5) * patch,
        "patch": patch,
        "dim": dim,
        "images": "images/log_temperature" in shapes,
        "layers": len({path.split("/")[1] for path in shapes if path.startswith("blocks/")}),
    }
    assumed: dict[str, object] = {"objective": "next_char"}
    kernel = shapes["blocks/0/attn/q/kernel"]
    if len(kernel) == 3:
        known["heads"] = kernel[1]
    else:
        assumed["heads"] = None if dim % 78 else dim // 78
    return known, assumed
