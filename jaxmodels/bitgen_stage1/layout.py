"""Every string that names a parameter of bitgen_stage1: sharding, PyTorch's and the seed's names.

Rows name state too (queues, counters, scales), which is saved and converted like parameters.
"""

from jax.sharding import PartitionSpec as P

from jaxmodels.dinov2 import layout as tower

_COLUMNS, _ROWS = P("data", "model"), P("model", "data")

# Parameters that `commit` writes, besides state.
COMMITTED = ("memory/mean",)

SHARDING = (
    *((f"vision/{path}", spec) for path, spec in tower.SHARDING if path != "*"),
    ("embed/embedding", _ROWS),
    ("decoder/head/kernel", _COLUMNS),
    ("decoder/head/bias", P("model")),
    ("decoder/blocks/{i}/mlp/up/kernel", _COLUMNS),
    ("decoder/blocks/{i}/mlp/out/kernel", _ROWS),
    ("blocks/{i}/attn/qkv/kernel", _COLUMNS),
    ("blocks/{i}/attn/proj/kernel", _ROWS),
    ("blocks/{i}/mlp/up/kernel", _COLUMNS),
    ("blocks/{i}/mlp/out/kernel", _ROWS),
    ("*/kernel", P("data")),
    ("*", P()),  # everything else is small
)


def _linear(ours: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{ours}/kernel", f"{theirs}.weight", "transpose"),
        (f"{ours}/bias", f"{theirs}.bias", "same"),
    )


def _norm(ours: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{ours}/scale", f"{theirs}.weight", "same"),
        (f"{ours}/bias", f"{theirs}.bias", "same"),
    )


def _bitlinear(ours: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *_linear(ours, theirs),
        (f"{ours}/weight_scale", f"{theirs}.weight_scale", "same"),
        (f"{ours}/input_scale", f"{theirs}.input_scale", "same"),
    )


# The tower's parameters in the order of transformers' module, which the optimiser's state has.
_TOWER = (
    "cls",
    "mask",
    "pos",
    "patch/kernel",
    "patch/bias",
    *(
        f"blocks/{{i}}/{path}"
        for path in (
            "norm1/scale", "norm1/bias",
            "attn/q/kernel", "attn/q/bias", "attn/k/kernel", "attn/k/bias",
            "attn/v/kernel", "attn/v/bias", "attn/proj/kernel", "attn/proj/bias",
            "ls1", "norm2/scale", "norm2/bias",
            "mlp/fc1/kernel", "mlp/fc1/bias", "mlp/fc2/kernel", "mlp/fc2/bias", "ls2",
        )
    ),
    "norm/scale",
    "norm/bias",
)  # fmt: skip
_SAVED = {ours: (theirs, op) for ours, theirs, op in tower.SAVED}


_F, _M, _G = "cross_modal_fusion.", "episodic_memory.", "episodic_memory.gpm.memory_"
_E, _D = "attention_layers.{i}.", "text_decoder.decoder_layers.{i}."

# Our path, the name in the seed's own checkpoint, op; in the order of the seed's module.
UPSTREAM = (
    ("embed/embedding", "token_embedding.weight", "same"),
    ("pos/embedding", "pos_embedding.weight", "same"),
    ("fusion/temperature", _F + "temperature", "same"),
    ("fusion/image_queue", _F + "image_queue", "same"),
    ("fusion/text_queue", _F + "text_queue", "same"),
    ("fusion/queue_ptr", _F + "queue_ptr", "counter"),
    *(
        (f"vision/{ours}", f"{_F}dinov2_model.{_SAVED[ours][0]}", _SAVED[ours][1])
        for ours in _TOWER
    ),
    *_linear("fusion/project", _F + "dinov2_to_vision"),
    *_linear("fusion/text", _F + "cross_modal_text_transform"),
    *_linear("fusion/image", _F + "cross_modal_image_transform"),
    *_linear("fusion/text_itc", _F + "cross_modal_text_transform_itc"),
    *_linear("fusion/image_itc", _F + "cross_modal_image_transform_itc"),
    *_linear("fusion/text_pooler", _F + "cross_modal_text_pooler.0"),
    *_linear("fusion/image_pooler", _F + "cross_modal_image_pooler.0"),
    *_linear("fusion/text_pooler_itc", _F + "cross_modal_text_pooler_itc.0"),
    *_linear("fusion/image_pooler_itc", _F + "cross_modal_image_pooler_itc.0"),
    *_linear("fusion/mlp/up", _F + "fusion_mlp.0"),
    *_linear("fusion/mlp/out", _F + "fusion_mlp.3"),
    ("memory/mean", _G + "mean", "same"),
    ("memory/logvar", _G + "logvar", "same"),
    ("memory/read_count", _G + "read_count", "same"),
    ("memory/write_count", _G + "write_count", "same"),
    ("memory/quality", _G + "quality", "same"),
    ("memory/age", _G + "age", "same"),
    *_linear("memory/query", _M + "input_proj"),
    *_linear("memory/out", _M + "output_proj"),
    *_norm("memory/norm", _M + "layer_norm"),
    ("blocks/{i}/attn/qkv/kernel", _E + "self_attn.in_proj_weight", "transpose"),
    ("blocks/{i}/attn/qkv/bias", _E + "self_attn.in_proj_bias", "same"),
    *_linear("blocks/{i}/attn/proj", _E + "self_attn.out_proj"),
    *_linear("blocks/{i}/mlp/up", _E + "linear1"),
    *_linear("blocks/{i}/mlp/out", _E + "linear2"),
    *_norm("blocks/{i}/norm1", _E + "norm1"),
    *_norm("blocks/{i}/norm2", _E + "norm2"),
    *_norm("norm", "layer_norm"),
    *_bitlinear("decoder/blocks/{i}/attn/q", _D + "self_attn.q_proj"),
    *_bitlinear("decoder/blocks/{i}/attn/k", _D + "self_attn.k_proj"),
    *_bitlinear("decoder/blocks/{i}/attn/v", _D + "self_attn.v_proj"),
    *_bitlinear("decoder/blocks/{i}/attn/proj", _D + "self_attn.out_proj"),
    *_bitlinear("decoder/blocks/{i}/context", _D + "encoder_proj"),
    *_bitlinear("decoder/blocks/{i}/mlp/up", _D + "ffn.0"),
    *_bitlinear("decoder/blocks/{i}/mlp/out", _D + "ffn.3"),
    *_norm("decoder/blocks/{i}/norm1", _D + "ln1"),
    *_norm("decoder/blocks/{i}/norm2", _D + "ln2"),
    *_norm("decoder/blocks/{i}/norm3", _D + "ln3"),
    *_norm("decoder/norm", "text_decoder.layer_norm"),
    *_bitlinear("decoder/head", "text_decoder.output_projection"),
)


def _torch(path: str) -> str:
    """The PyTorch twin's name: our path with dots, and a layer's array called weight."""
    *parents, name = path.split("/")
    return ".".join([*parents, "weight" if name in ("kernel", "scale", "embedding") else name])


# Our path, the PyTorch twin's name, op (bridge/core/ops.py).

INIT_FROM = {"dinov2": (("vision/*", "*"),)}

# Weights that are rounded to −1, 0 and 1 in evaluation.
TERNARY = (
    *(f"decoder/blocks/{{i}}/attn/{name}/kernel" for name in ("q", "k", "v", "proj")),
    "decoder/blocks/{i}/context/kernel",
    "decoder/blocks/{i}/mlp/up/kernel",
    "decoder/blocks/{i}/mlp/out/kernel",
    "decoder/head/kernel",
)

WEIGHTS = tuple((ours, _torch(ours), op) for ours, _, op in UPSTREAM)


# The seed's conventions hold for its own files only.
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
        the fields that follow from the shapes, and those that are assumed: the seed's 4 heads,
        images of 224 pixels and dropout, and heads of width 64 in the tower. Fields of the tower
        are called `dinov2.heads` and the like.
    """

    def blocks(of: str) -> int:
        start = of.count("/")
        return len({path.split("/")[start] for path in shapes if path.startswith(of)})

    vision = {path[len("vision/") :]: s for path, s in shapes.items() if path.startswith("vision/")}
    seen, guessed = tower.sizes(vision)
    vocab, dim = shapes["embed/embedding"]
    known: dict[str, object] = {
        "vocab": vocab,
        "dim": dim,
        "layers": blocks("blocks/"),
        "hidden": shapes["blocks/0/mlp/up/kernel"][1],
        "decoder_layers": blocks("decoder/blocks/"),
        "context": shapes["pos/embedding"][0],
        "slots": shapes["memory/mean"][0],
        **{f"dinov2.{name}": value for name, value in seen.items()},
    }
    assumed: dict[str, object] = {
        "heads": 4,
        "image_size": 224,
        "dropout": 0.1,
        **{f"dinov2.{name}": value for name, value in guessed.items()},
        "dinov2.interpolation": "size",
    }
    queue = shapes.get("fusion/image_queue")
    (assumed if queue is None else known)["queue"] = 4096 if queue is None else queue[1]
    return known, assumed
