"""The models in plain JAX, as anybody would write them for a TPU: the peer of `bench plan`.

No module, no layout, no chunk that is not obvious: a dict of float32 parameters, products in
bfloat16, one einsum for each projection, heads before positions ([b h t k]) as the TPU's splash
attention takes them, rotation of halves, AdamW by optax. Of each model it has the operations that
cost something: the same products, norms, activations and dropout, the same loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodels.errors import USAGE, Problem

Params = Any
ARCHS = ("wikigpt", "charlm", "bwetaf", "dinov2")
WHOLE_LOGITS, LOSS_ROWS = 4 * 2**30, 4096  # bytes; above, rows of logits at a time


@dataclass(frozen=True)
class Shape:
    """The sizes of a plain Transformer, and which parts it has."""

    vocab: int
    dim: int
    layers: int
    heads: int
    hidden: int
    length: int
    norm: str = "layer"  # or rms
    activation: str = "gelu"  # gelu, exact, swiglu
    bias: bool = True
    rotary: bool = False
    learned: bool = True
    tied: bool = True
    causal: bool = True
    dropout: float = 0.0


def shape_of(arch: str, cfg: Any) -> Shape:
    """The plain form of a Config.

    Raises:
        Problem: (usage) there is none of this architecture.
    """
    if arch == "wikigpt":
        return Shape(cfg.vocab, cfg.dim, cfg.layers, cfg.heads, cfg.hidden, cfg.context)
    if arch not in ARCHS:
        raise Problem(f"{arch} has no plain form", fix="see benchmarks/plain.py", exit_code=USAGE)
    common = (cfg.vocab if arch != "dinov2" else 0, cfg.dim, cfg.layers)
    if arch == "charlm":
        parts: dict[str, Any] = {
            "activation": "swiglu",
            "rotary": True,
            "learned": False,
            "tied": False,
        }
        sizes = (*common, cfg.heads, cfg.hidden, cfg.context)
        return Shape(*sizes, **parts, dropout=cfg.dropout)
    if arch == "bwetaf":
        parts = {"norm": "rms", "activation": "swiglu", "bias": False, "learned": False}
        sizes = (*common, cfg.heads_by_layer[0], cfg.hidden, cfg.context)
        return Shape(*sizes, **parts, dropout=cfg.dropout)
    sizes = (*common, cfg.heads, cfg.hidden, 1 + cfg.registers + cfg.side**2)
    return Shape(*sizes, activation="exact", causal=False)


def parameter_shapes(s: Shape) -> Params:
    """Name → shape, in nested dicts and a list of blocks."""
    width = s.dim // s.heads
    block = {
        "norm1": (s.dim,),
        "norm2": (s.dim,),
        **dict.fromkeys(("q", "k", "v"), (s.dim, s.heads, width)),
        "proj": (s.heads, width, s.dim),
        "up": (s.dim, s.hidden),
        "down": (s.hidden, s.dim),
        **({"gate": (s.dim, s.hidden)} if s.activation == "swiglu" else {}),
    }
    if s.bias:
        block |= {"bias1": (s.dim,), "bias2": (s.dim,), "up_bias": (s.hidden,)}
    if s.bias and s.activation != "swiglu":
        block |= {f"{name}_bias": (s.heads, 1, width) for name in ("q", "k", "v")}
    block |= {"proj_bias": (s.dim,), "down_bias": (s.dim,)}
    params: Params = {"blocks": [dict(block) for _ in range(s.layers)], "norm": (s.dim,)}
    if s.vocab:
        params["embed"] = (s.vocab, s.dim)
    if s.learned:
        params["pos"] = (s.length, s.dim)
    if not s.tied:
        params["head"] = (s.dim, s.vocab)
    return params


def norm(x: Any, scale: Any, bias: Any, kind: str) -> Any:
    """LayerNorm or RMSNorm in float32; the result in bfloat16."""
    x = x.astype(jnp.float32)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale
    return (x if bias is None else x + bias).astype(jnp.bfloat16)


def attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Splash attention of [b h t k], its usual tiles; padded where the length needs it."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length = q.shape[1:3]
    pad = -length % 128
    ids = None
    if pad:
        q, k, v = (jnp.pad(each, ((0, 0), (0, 0), (0, pad), (0, 0))) for each in (q, k, v))
        ids = splash.SegmentIds(*(2 * [(jnp.arange(length + pad) >= length).astype(jnp.int32)]))
    size = (length + pad,) * 2
    mask = splash.CausalMask(size) if causal else splash.FullMask(size)
    tile = next(tile for tile in (512, 384, 256, 128) if size[0] % tile == 0)
    tiles: Any = dict.fromkeys(TILES, tile)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**tiles),
        head_shards=1,
        q_seq_shards=1,
    )
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, ids))(q * q.shape[-1] ** -0.5, k, v)
    return out[:, :, :length]


TILES = (
    *("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"),
    *("block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
)


def rotate(x: Any) -> Any:
    """Rotary positions on halves of [b h t k], in float32."""
    half = x.shape[-1] // 2
    angles = np.outer(np.arange(x.shape[-2]), 10000.0 ** (-np.arange(half) / half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def drop(x: Any, rate: float, key: Any) -> Any:
    """Dropout with hardware's random bits."""
    if not rate:
        return x
    bits = jax.random.bits(key, x.shape, jnp.uint8)
    return jnp.where(bits >= round(256 * rate), x / (1 - rate), 0).astype(x.dtype)


def block(s: Shape, x: Any, p: Params, key: Any) -> Any:
    """One block; the residual stream is bfloat16 (ours is float32, which costs more)."""
    p = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
    h = norm(x, p["norm1"], p.get("bias1"), s.norm)
    q, k, v = (jnp.einsum("btd,dhk->bhtk", h, p[name]) + p.get(f"{name}_bias", 0) for name in "qkv")
    if s.rotary:
        q, k = rotate(q), rotate(k)
    out = jnp.einsum("bhtk,hkd->btd", attention(q, k, v, s.causal), p["proj"]) + p["proj_bias"]
    x = x + (drop(out, s.dropout, key) if s.norm == "rms" else out)
    h = norm(x, p["norm2"], p.get("bias2"), s.norm)
    up = h @ p["up"] + p.get("up_bias", 0)
    if s.activation == "swiglu":
        up = drop(up * jax.nn.silu(h @ p["gate"]), s.dropout if s.norm == "layer" else 0.0, key)
    else:
        up = jax.nn.gelu(up, approximate=s.activation == "gelu")
    return x + up @ p["down"] + p["down_bias"]


def loss(s: Shape, params: Params, tokens: Any, key: Any) -> Any:
    """Mean cross-entropy of a language model, its logits whole or in chunks of rows."""
    x = params["embed"].astype(jnp.bfloat16)[tokens[:, :-1]]
    if s.learned:
        x = x + params["pos"].astype(jnp.bfloat16)
    for number, p in enumerate(params["blocks"]):
        x = block(s, x, p, jax.random.fold_in(key, number))
    x, y = norm(x, params["norm"], None, s.norm).reshape(-1, s.dim), tokens[:, 1:].reshape(-1)
    head = params["embed"].T if s.tied else params["head"]

    def cross_entropy(rows: Any, targets: Any) -> Any:
        logits = jnp.dot(rows, head.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
        right = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
        return (jax.nn.logsumexp(logits, -1) - right).sum()

    if len(y) * s.vocab * 4 < WHOLE_LOGITS or len(y) % LOSS_ROWS:
        return cross_entropy(x, y) / len(y)
    chunks = x.reshape(-1, LOSS_ROWS, s.dim), y.reshape(-1, LOSS_ROWS)
    one = jax.checkpoint(cross_entropy)
    total, _ = jax.lax.scan(lambda sum_, chunk: (sum_ + one(*chunk), None), jnp.zeros(()), chunks)
    return total / len(y)


class Plain(NamedTuple):
    """A program to compile, and its arguments by shape."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...]


def train_step(arch: str, config: Any, batch: int) -> Plain:
    """Gradient, clipping, AdamW."""
    s = shape_of(arch, config)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1))

    def step(params: Params, state: Any, tokens: Any, seed: Any) -> Any:
        key = jax.random.wrap_key_data(seed, impl="rbg")
        value, grads = jax.value_and_grad(partial(loss, s))(params, tokens, key)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = _abstract(parameter_shapes(s))
    tokens = jax.ShapeDtypeStruct((batch, s.length + 1), jnp.int32)
    seed = jax.ShapeDtypeStruct((4,), jnp.uint32)
    return Plain(step, (params, jax.eval_shape(optimiser.init, params), tokens, seed), (0, 1))


def features(arch: str, config: Any, batch: int) -> Plain:
    """A DINOv2's features of images of its own size, in bfloat16."""
    s, side = shape_of(arch, config), config.side

    def run(params: Params, images: Any) -> Any:
        patches = images.reshape(batch, side, config.patch, side, config.patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)
        x = patches.astype(jnp.bfloat16) @ params["patch"].astype(jnp.bfloat16)
        cls = jnp.broadcast_to(params["cls"], (batch, 1 + config.registers, s.dim))
        x = jnp.concatenate([cls.astype(x.dtype), x], 1) + params["pos"].astype(x.dtype)
        for p in params["blocks"]:
            x = block(s, x, p, None)
        return norm(x, params["norm"], None, s.norm)

    extra = {"patch": (3 * config.patch**2, s.dim), "cls": (1 + config.registers, s.dim)}
    params = _abstract(parameter_shapes(s) | extra)
    pixels = config.side * config.patch
    images = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.float32)
    return Plain(run, (params, images), ())


def _abstract(shapes: Params) -> Params:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def our_features(config: Any, batch: int, mesh: Any) -> Plain:
    """The same of our own tower; to be traced within `mesh`."""
    from flax import nnx

    from jaxmodels.dinov2 import Model
    from jaxmodels.layers.keys import keys
    from jaxmodels.runtime.paths import split

    graphdef, params, rest = split(nnx.eval_shape(lambda: Model(config, rngs=keys(default=0))))

    def run(params: Params, images: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            cast = {path: leaf.astype(jnp.bfloat16) for path, leaf in params.items()}
            return graphdef.merge(cast, rest)(images)

    images = features("dinov2", config, batch).arguments[1]
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in params.items()}
    return Plain(run, (shapes, images), ())


def cycles(arch: str, config: Any, batch: int, topology: str, ours: bool = False) -> int:
    """What the compiler expects of the plain form, or of our tower, on one described chip."""
    from jax.sharding import SingleDeviceSharding

    from jaxmodels.runtime.planning import tpu
    from jaxmodels.runtime.planning.chips import Topology
    from jaxmodels.runtime.planning.chips import topology as named
    from jaxmodels.runtime.planning.cycles import estimated
    from jaxmodels.runtime.sharding import make_mesh

    slice_ = named(topology)
    assert isinstance(slice_, Topology)
    (device,) = tpu.devices(slice_)
    if ours:
        program = our_features(config, batch, make_mesh("", [device]))
    else:
        program = (features if arch == "dinov2" else train_step)(arch, config, batch)
    where = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), program.arguments
    )
    traced = jax.jit(program.run, donate_argnums=program.donated).trace(*arguments)
    return estimated(traced.lower(lowering_platforms=("tpu",)).compile().as_text())


def feature_flops(config: Any, batch: int) -> int:
    """Operations of a tower's products, without padding."""
    s = shape_of("dinov2", config)
    weights = s.layers * (4 * s.dim**2 + 2 * s.dim * s.hidden)
    attended = s.layers * 2 * s.length * s.dim
    patches = config.side**2 * 3 * config.patch**2 * s.dim
    return 2 * batch * (s.length * (weights + attended) + patches)
