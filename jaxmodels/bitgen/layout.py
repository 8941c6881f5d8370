"""Every string that names a parameter of bitgen: sharding, and PyTorch's names.

Rows name state too (the queue, the memory's contents), which is saved and converted like
parameters.
"""

from jax.sharding import PartitionSpec as P

from jaxmodels.dinov2 import layout as tower

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

SHARDING = (
    *((f"vision/{path}", spec) for path, spec in tower.SHARDING if path != "*"),
    ("embed/embedding", _ROWS),
    ("*/qkv/kernel", _COLUMNS),
    ("*/cross/q/kernel", _COLUMNS),
    ("*/cross/kv/kernel", _COLUMNS),
    ("*/up/kernel", _COLUMNS),
    ("*/attn/proj/kernel", _ROWS),
    ("*/cross/proj/kernel", _ROWS),
    ("*/mlp/out/kernel", _ROWS),
    ("*", P()),  # everything else is small
)


def _bit(ours: str) -> tuple[tuple[str, str], ...]:
    """A BitNet linear: its kernel, and the scale of its norm."""
    return (f"{ours}/kernel", "transpose"), (f"{ours}/norm/scale", "same")


def _linear(ours: str) -> tuple[tuple[str, str], ...]:
    return (f"{ours}/kernel", "transpose"), (f"{ours}/bias", "same")


def _block(ours: str) -> tuple[tuple[str, str], ...]:
    """A block with all its optional parts."""
    return (
        *_bit(f"{ours}/attn/qkv"),
        *_bit(f"{ours}/attn/proj"),
        *_bit(f"{ours}/cross/q"),
        *_bit(f"{ours}/cross/kv"),
        *_bit(f"{ours}/cross/proj"),
        (f"{ours}/gate", "same"),
        *_bit(f"{ours}/mlp/up"),
        *_bit(f"{ours}/mlp/out"),
    )


_ROWS_OF_MODEL = (
    ("embed/embedding", "same"),
    ("pos/embedding", "same"),
    *((f"vision/{ours}", op) for ours, _, op in tower.WEIGHTS),
    *_linear("project"),
    *_block("text/{i}"),
    ("text_norm/scale", "same"),
    *_block("image/{i}"),
    ("image_norm/scale", "same"),
    *_linear("text_pool/dense"),
    *_linear("text_pool/proj"),
    *_linear("image_pool/dense"),
    *_linear("image_pool/proj"),
    ("temperature", "same"),
    *_linear("match"),
    ("memory/keys", "same"),
    ("memory/mean", "same"),
    ("memory/log_variance", "same"),
    ("memory/address_log_variance", "same"),
    *_linear("memory/code"),
    *_linear("memory/out"),
    ("memory/gram", "same"),
    ("memory/total", "same"),
    ("memory/count", "same"),
    ("decoder/start", "same"),
    *_block("decoder/blocks/{i}"),
    ("decoder/norm/scale", "same"),
    ("queue/text", "same"),
    ("queue/image", "same"),
    ("queue/ids", "same"),
    ("queue/total", "same"),
)


def _torch(path: str) -> str:
    """The PyTorch twin's name: our path with dots, and a layer's array called weight."""
    *parents, name = path.split("/")
    return ".".join([*parents, "weight" if name in ("kernel", "scale", "embedding") else name])


# Our path, the PyTorch twin's name, op (bridge/core/ops.py).
WEIGHTS = tuple((ours, _torch(ours), op) for ours, op in _ROWS_OF_MODEL)


# Weights that are always used rounded to −1, 0 and 1.
TERNARY = tuple(
    f"{block}/{kernel}/kernel"
    for block in ("text/{i}", "image/{i}", "decoder/blocks/{i}")
    for kernel in (
        "attn/qkv", "attn/proj", "cross/q", "cross/kv", "cross/proj", "mlp/up", "mlp/out",
    )
)  # fmt: skip


# Weights that a packed model has in 8 bits, with a scale for each row of PyTorch's layout.
INT8 = (
    *("vision/*/kernel", "vision/pos", "embed/embedding", "pos/embedding"),
    *("project/kernel", "text_pool/*/kernel", "image_pool/*/kernel"),
)

# What was written into the memory, item by item (`record.py`).
CARRIED = ("memory.json",)

# What `--lora` adapts by default: the text encoder and the decoder.
LORA = ("text/*/kernel", "decoder/blocks/*/kernel")

# Parameters that `--init` takes from another architecture: its name → rows (our path, theirs; "*"
# is the same). Encoder and decoder of Stage 1 are different networks: post-norm, with biases, and
# without a norm before each ternary product.
INIT_FROM = {
    "bitgen_stage1": (
        ("vision/*", "vision/*"),
        ("embed/embedding", "embed/embedding"),
        ("pos/embedding", "pos/embedding"),
        ("project/kernel", "fusion/project/kernel"),
        ("project/bias", "fusion/project/bias"),
        ("temperature", "fusion/temperature"),
    ),
    "dinov2": (("vision/*", "*"),),
}


# No published file has these names, so no number of heads is assumed.
ASSUMED = {label: {"heads": None, "dinov2.heads": None} for label in ("WEIGHTS", "own")}


def sizes(
    shapes: dict[str, tuple[int, ...]],
    others: dict[str, tuple[int, ...]] | None = None,
    given: dict[str, object] | None = None,
) -> tuple[dict[str, object], dict[str, object]]:
    """Config fields that the shapes in a checkpoint determine, and those that must be assumed.

    Args:
        shapes: path → shape of every parameter, and of state where it is there.
        others: name → shape of the other tensors in the checkpoint; not used.
        given: fields that the files or the user give; not used.

    Returns:
        the fields that follow from the shapes, and those that are assumed: the card's 4 heads,
        images of 224 pixels and dropout, and heads of width 64 in the tower. Fields of the tower
        are called `dinov2.heads` and the like.
    """

    def blocks(of: str, part: str = "") -> int:
        at = of.count("/")
        held = (path for path in shapes if path.startswith(of) and part in path)
        return len({path.split("/")[at] for path in held})

    vision = {path[len("vision/") :]: s for path, s in shapes.items() if path.startswith("vision/")}
    seen, guessed = tower.sizes(vision)
    vocab, dim = shapes["embed/embedding"]
    known: dict[str, object] = {
        "vocab": vocab,
        "dim": dim,
        "layers": blocks("text/"),
        "image_layers": blocks("image/"),
        "fused": blocks("text/", "/cross/"),
        "merge": round((shapes["project/kernel"][0] / vision["norm/scale"][0]) ** 0.5),
        "decoder_layers": blocks("decoder/blocks/"),
        "hidden": shapes["text/0/mlp/up/kernel"][1],
        "context": shapes["pos/embedding"][0],
        "slots": shapes["memory/keys"][0],
        **{f"dinov2.{name}": value for name, value in seen.items()},
    }
    assumed: dict[str, object] = {
        "heads": 4,
        "image_size": 224,
        "dropout": 0.1,
        "temperature": 0.07,
        "momentum": 0.0,
        "queue_inputs": False,
        "weights": (1.0, 0.5, 0.5, 0.1),
        "noise": 0.01,
        "addressing": "ridge",
        **{f"dinov2.{name}": value for name, value in guessed.items()},
    }
    queue = shapes.get("queue/ids")
    (assumed if queue is None else known)["queue"] = 4096 if queue is None else queue[0]
    return known, assumed
