"""Every string that names a parameter of dinov2: sharding, and the names of three kinds of file."""

from jax.sharding import PartitionSpec as P

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

SHARDING = (
    ("patch/kernel", P(None, None, None, "data")),
    ("pos", P(None, "data")),
    ("blocks/{i}/attn/q/kernel", _COLUMNS),
    ("blocks/{i}/attn/k/kernel", _COLUMNS),
    ("blocks/{i}/attn/v/kernel", _COLUMNS),
    ("blocks/{i}/attn/q/bias", P("model")),
    ("blocks/{i}/attn/k/bias", P("model")),
    ("blocks/{i}/attn/v/bias", P("model")),
    ("blocks/{i}/attn/proj/kernel", _ROWS),
    ("blocks/{i}/mlp/fc1/kernel", _COLUMNS),
    ("blocks/{i}/mlp/fc1/bias", P("model")),
    ("blocks/{i}/mlp/fc2/kernel", _ROWS),
    ("blocks/{i}/mlp/gate/kernel", _COLUMNS),
    ("blocks/{i}/mlp/gate/bias", P("model")),
    ("blocks/{i}/mlp/up/kernel", _COLUMNS),
    ("blocks/{i}/mlp/up/bias", P("model")),
    ("blocks/{i}/mlp/down/kernel", _ROWS),
    ("*", P()),  # norms, scales, single tokens and the other biases are small
)

_ENDS = (
    ("patch/kernel", "embeddings.patch_embeddings.projection.weight", "convolution"),
    ("patch/bias", "embeddings.patch_embeddings.projection.bias", "same"),
    ("cls", "embeddings.cls_token", "row"),
    ("mask", "embeddings.mask_token", "one"),
    ("pos", "embeddings.position_embeddings", "one"),
    ("registers", "embeddings.register_tokens", "one"),
    ("norm/scale", "layernorm.weight", "same"),
    ("norm/bias", "layernorm.bias", "same"),
)
_B = "encoder.layer.{i}."
_BLOCK = (
    ("blocks/{i}/norm1/scale", _B + "norm1.weight", "same"),
    ("blocks/{i}/norm1/bias", _B + "norm1.bias", "same"),
    ("blocks/{i}/ls1", _B + "layer_scale1.lambda1", "same"),
    ("blocks/{i}/norm2/scale", _B + "norm2.weight", "same"),
    ("blocks/{i}/norm2/bias", _B + "norm2.bias", "same"),
    ("blocks/{i}/ls2", _B + "layer_scale2.lambda1", "same"),
    ("blocks/{i}/mlp/fc1/kernel", _B + "mlp.fc1.weight", "transpose"),
    ("blocks/{i}/mlp/fc1/bias", _B + "mlp.fc1.bias", "same"),
    ("blocks/{i}/mlp/fc2/kernel", _B + "mlp.fc2.weight", "transpose"),
    ("blocks/{i}/mlp/fc2/bias", _B + "mlp.fc2.bias", "same"),
)

# Our path, the name in the module of transformers 5, op (bridge/core/ops.py).
WEIGHTS = (
    *_ENDS,
    *_BLOCK,
    ("blocks/{i}/attn/q/kernel", _B + "attention.q_proj.weight", "transpose"),
    ("blocks/{i}/attn/q/bias", _B + "attention.q_proj.bias", "same"),
    ("blocks/{i}/attn/k/kernel", _B + "attention.k_proj.weight", "transpose"),
    ("blocks/{i}/attn/k/bias", _B + "attention.k_proj.bias", "same"),
    ("blocks/{i}/attn/v/kernel", _B + "attention.v_proj.weight", "transpose"),
    ("blocks/{i}/attn/v/bias", _B + "attention.v_proj.bias", "same"),
    ("blocks/{i}/attn/proj/kernel", _B + "attention.o_proj.weight", "transpose"),
    ("blocks/{i}/attn/proj/bias", _B + "attention.o_proj.bias", "same"),
    ("blocks/{i}/mlp/gate/kernel", _B + "mlp.gate_proj.weight", "transpose"),
    ("blocks/{i}/mlp/gate/bias", _B + "mlp.gate_proj.bias", "same"),
    ("blocks/{i}/mlp/up/kernel", _B + "mlp.up_proj.weight", "transpose"),
    ("blocks/{i}/mlp/up/bias", _B + "mlp.up_proj.bias", "same"),
    ("blocks/{i}/mlp/down/kernel", _B + "mlp.down_proj.weight", "transpose"),
    ("blocks/{i}/mlp/down/bias", _B + "mlp.down_proj.bias", "same"),
)

# The names in files, which transformers 4 and 5 write and both read. "NAME[1]" is the second part
# of a tensor, cut along its first axis.
SAVED = (
    *_ENDS,
    *_BLOCK,
    ("blocks/{i}/attn/q/kernel", _B + "attention.attention.query.weight", "transpose"),
    ("blocks/{i}/attn/q/bias", _B + "attention.attention.query.bias", "same"),
    ("blocks/{i}/attn/k/kernel", _B + "attention.attention.key.weight", "transpose"),
    ("blocks/{i}/attn/k/bias", _B + "attention.attention.key.bias", "same"),
    ("blocks/{i}/attn/v/kernel", _B + "attention.attention.value.weight", "transpose"),
    ("blocks/{i}/attn/v/bias", _B + "attention.attention.value.bias", "same"),
    ("blocks/{i}/attn/proj/kernel", _B + "attention.output.dense.weight", "transpose"),
    ("blocks/{i}/attn/proj/bias", _B + "attention.output.dense.bias", "same"),
    ("blocks/{i}/mlp/gate/kernel", _B + "mlp.weights_in.weight[0]", "transpose"),
    ("blocks/{i}/mlp/gate/bias", _B + "mlp.weights_in.bias[0]", "same"),
    ("blocks/{i}/mlp/up/kernel", _B + "mlp.weights_in.weight[1]", "transpose"),
    ("blocks/{i}/mlp/up/bias", _B + "mlp.weights_in.bias[1]", "same"),
    ("blocks/{i}/mlp/down/kernel", _B + "mlp.weights_out.weight", "transpose"),
    ("blocks/{i}/mlp/down/bias", _B + "mlp.weights_out.bias", "same"),
)

# The names in the published .pth files.
UPSTREAM = (
    ("cls", "cls_token", "row"),
    ("pos", "pos_embed", "one"),
    ("registers", "register_tokens", "one"),
    ("mask", "mask_token", "one"),
    ("patch/kernel", "patch_embed.proj.weight", "convolution"),
    ("patch/bias", "patch_embed.proj.bias", "same"),
    ("blocks/{i}/norm1/scale", "blocks.{i}.norm1.weight", "same"),
    ("blocks/{i}/norm1/bias", "blocks.{i}.norm1.bias", "same"),
    ("blocks/{i}/attn/q/kernel", "blocks.{i}.attn.qkv.weight[0]", "transpose"),
    ("blocks/{i}/attn/k/kernel", "blocks.{i}.attn.qkv.weight[1]", "transpose"),
    ("blocks/{i}/attn/v/kernel", "blocks.{i}.attn.qkv.weight[2]", "transpose"),
    ("blocks/{i}/attn/q/bias", "blocks.{i}.attn.qkv.bias[0]", "same"),
    ("blocks/{i}/attn/k/bias", "blocks.{i}.attn.qkv.bias[1]", "same"),
    ("blocks/{i}/attn/v/bias", "blocks.{i}.attn.qkv.bias[2]", "same"),
    ("blocks/{i}/attn/proj/kernel", "blocks.{i}.attn.proj.weight", "transpose"),
    ("blocks/{i}/attn/proj/bias", "blocks.{i}.attn.proj.bias", "same"),
    ("blocks/{i}/ls1", "blocks.{i}.ls1.gamma", "same"),
    ("blocks/{i}/norm2/scale", "blocks.{i}.norm2.weight", "same"),
    ("blocks/{i}/norm2/bias", "blocks.{i}.norm2.bias", "same"),
    ("blocks/{i}/mlp/fc1/kernel", "blocks.{i}.mlp.fc1.weight", "transpose"),
    ("blocks/{i}/mlp/fc1/bias", "blocks.{i}.mlp.fc1.bias", "same"),
    ("blocks/{i}/mlp/fc2/kernel", "blocks.{i}.mlp.fc2.weight", "transpose"),
    ("blocks/{i}/mlp/fc2/bias", "blocks.{i}.mlp.fc2.bias", "same"),
    ("blocks/{i}/mlp/gate/kernel", "blocks.{i}.mlp.w12.weight[0]", "transpose"),
    ("blocks/{i}/mlp/up/kernel", "blocks.{i}.mlp.w12.weight[1]", "transpose"),
    ("blocks/{i}/mlp/gate/bias", "blocks.{i}.mlp.w12.bias[0]", "same"),
    ("blocks/{i}/mlp/up/bias", "blocks.{i}.mlp.w12.bias[1]", "same"),
    ("blocks/{i}/mlp/down/kernel", "blocks.{i}.mlp.w3.weight", "transpose"),
    ("blocks/{i}/mlp/down/bias", "blocks.{i}.mlp.w3.bias", "same"),
    ("blocks/{i}/ls2", "blocks.{i}.ls2.gamma", "same"),
    ("norm/scale", "norm.weight", "same"),
    ("norm/bias", "norm.bias", "same"),
)

# No output depends on it, and files may lack it.
UNREAD = ("mask",)
# What training puts on the tower: heads, of DINO, iBOT or a classifier.
OTHER_HEADS = ("head.*", "fc.*", "classifier.*", "linear_head.*", "dino_head.*", "ibot_head.*")

HEAD_WIDTH = 64
"""Of all published sizes; no file of tensors tells it."""
ASSUMED = {"own": {"heads": None}}


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
        what follows from the shapes, and what is the architecture's convention: heads of 64 where
        they fit, and the published code's interpolation, which goes by whether there are registers.
    """
    patch, dim = shapes["patch/kernel"][0], shapes["patch/kernel"][-1]
    registers = shapes.get("registers", (0,))[0]
    gelu = "blocks/0/mlp/fc1/kernel" in shapes
    known: dict[str, object] = {
        "dim": dim,
        "layers": len({path.split("/")[1] for path in shapes if path.startswith("blocks/")}),
        "mlp": "gelu" if gelu else "swiglu",
        "hidden": shapes["blocks/0/mlp/fc1/kernel" if gelu else "blocks/0/mlp/gate/kernel"][1],
        "patch": patch,
        "image_size": round((shapes["pos"][0] - 1) ** 0.5) * patch,
        "registers": registers,
    }
    assumed: dict[str, object] = {
        "heads": None if dim % HEAD_WIDTH else dim // HEAD_WIDTH,
        "interpolation": "antialias" if registers else "scale_offset",
    }
    return known, assumed
