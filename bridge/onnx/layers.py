"""Layers of our models as operators of ONNX; parameters are named by our paths."""

from collections.abc import Callable
from functools import cache

import numpy as np

from bridge.onnx.graph import Graph, Value
from bridge.onnx.weights import axis_of_scales, rounded_rows

HIDDEN = -1e9  # the score of a key that a query may not see


def matrix(g: Graph, path: str) -> Value:
    """A matrix as float32: as it is, or from int8 with its scales."""
    if path not in g.weights.quantised:
        return g.weight(path)
    levels, scales = int8(g, path)
    return g.op("DequantizeLinear", levels, scales, axis=axis_of_scales(path), dtype=scales.dtype)


def int8(g: Graph, path: str) -> tuple[Value, Value]:
    """A quantised matrix and its scales."""
    both = cache(lambda: rounded_rows(g.weights.values(path), axis_of_scales(path)))
    levels = g.derived(f"{path}/int8", lambda: both()[0])
    return levels, g.derived(f"{path}/scales", lambda: both()[1])


def linear(g: Graph, x: Value, path: str) -> Value:
    """x · kernel + bias, of which a model may have none."""
    y = x @ matrix(g, f"{path}/kernel")
    return y + g.weight(f"{path}/bias") if g.has(f"{path}/bias") else y


def embed(g: Graph, ids: Value, path: str) -> Value:
    """Rows of an embedding, [b, t] → [b, t, d]."""
    if path not in g.weights.quantised:
        return g.weight(path).take(ids)
    levels, scales = int8(g, path)
    return levels.take(ids).cast(np.float32) * scales.take(ids).unsqueeze(-1)


def tied_head(g: Graph, x: Value, path: str) -> Value:
    """x times the embedding, [b, t, d] → [b, t, v]."""
    return x @ matrix(g, path).transpose(1, 0)


def layer_norm(g: Graph, x: Value, path: str, epsilon: float = 1e-6) -> Value:
    """Rows of mean 0 and variance 1, scaled, and moved if there is a bias."""
    given = [g.weight(f"{path}/scale")]
    if g.has(f"{path}/bias"):
        given.append(g.weight(f"{path}/bias"))
    return g.op("LayerNormalization", x, *given, axis=-1, epsilon=epsilon)


def rms_norm(g: Graph, x: Value, path: str, epsilon: float = 1e-6) -> Value:
    """Rows divided by the root of their mean square, scaled."""
    root = g.op("Sqrt", (x * x).mean() + epsilon)
    return x / root * g.weight(f"{path}/scale")


def gelu(g: Graph, x: Value, approximate: str = "none") -> Value:
    """GELU, exact or by "tanh"."""
    return g.op("Gelu", x, approximate=approximate)


def silu(g: Graph, x: Value) -> Value:
    """x · sigmoid(x)."""
    return x * g.op("Sigmoid", x)


def value_first_swiglu(g: Graph, x: Value, path: str) -> Value:
    """w · silu(v) with (w | v) = wv(x), and back."""
    w, v = linear(g, x, f"{path}/wv").split(2)
    return linear(g, w * silu(g, v), f"{path}/out")


def heads(x: Value, count: int, width: int) -> Value:
    """[b, t, d] → [b, h, t, k]."""
    return x.reshape(0, 0, count, width).transpose(0, 2, 1, 3)


def attention(g: Graph, q: Value, k: Value, v: Value, dim: int, keep: Value | None) -> Value:
    """Softmax attention of [b, h, t, k] at scale 1/√k, [b, t, d].

    Args:
        g: the graph.
        q: queries.
        k: keys [b, h, s, k].
        v: values.
        dim: d.
        keep: bool, broadcast to [b, h, t, s]: what is seen; None for all.
    """
    width = g.op("Sqrt", k.size(3).cast(np.float32))
    scores = q @ k.transpose(0, 1, 3, 2) / width
    if keep is not None:
        scores = g.where(keep, scores, HIDDEN)
    out = g.op("Softmax", scores, axis=-1) @ v
    return out.transpose(0, 2, 1, 3).reshape(0, 0, dim)


def rotation(g: Graph, positions: Value, width: int, base: float = 10_000.0) -> tuple[Value, Value]:
    """Cosine and sine of `position · base^(−2j/width)`: positions [b, t] → [b, t, width/2]."""
    rate = base ** -(np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angle = positions.cast(np.float32).unsqueeze(-1) * g.constant(
        rate.astype(np.float32), np.float32
    )
    return g.op("Cos", angle), g.op("Sin", angle)


def rotate(g: Graph, x: Value, rope: tuple[Value, Value], count: int, width: int) -> Value:
    """Turns the pairs (x0, x1), (x2, x3), … of x [b, h, t, k]."""
    cos, sin = (part.unsqueeze(1) for part in rope)
    pairs = x.reshape(0, count, 0, width // 2, 2)
    even, odd = (pairs.take(i, axis=-1) for i in (0, 1))
    turned = [even * cos - odd * sin, odd * cos + even * sin]
    return g.concat(*(part.unsqueeze(-1) for part in turned), axis=-1).reshape(0, count, 0, width)


def ternary_linear(g: Graph, x: Value, path: str) -> Value:
    """BitNet's linear: activations of 8 bits by weights of −1, 0 and 1, in whole numbers.

    The weights are two bits each in the file, and bytes in memory: onnxruntime unpacks them when
    it opens the graph.
    """
    x = rms_norm(g, x, f"{path}/norm")
    scale = g.op("Max", g.op("Abs", x).max(), 1e-5)
    levels = g.op("Clip", g.op("Round", x * (127.0 / scale)), -128.0, 127.0)
    both = cache(lambda: ternary(g.weights.values(f"{path}/kernel")))
    signs = _unpacked(g, f"{path}/kernel", lambda: packed(both()[0]))
    gamma = g.derived(f"{path}/gamma", lambda: np.asarray(both()[1]))
    # onnxruntime's fused kernels take unsigned bytes on both sides.
    levels, zeros = (levels + 128.0).cast(np.uint8), [g.constant(x, np.uint8) for x in (128, 1)]
    product = g.op("MatMulInteger", levels, signs, *zeros, dtype=np.dtype("i4"))
    return product.cast(np.float32) * (gamma.cast(np.float32) * (scale / 127.0))


def ternary(kernel: np.ndarray) -> tuple[np.ndarray, float]:
    """(−1, 0 or 1 for each weight, γ), as `jaxmodels.bitgen.bitlinear` has them, in float64."""
    from jaxmodels.bitgen.bitlinear import ROUNDING

    values = kernel.astype(np.float64)
    sizes = np.abs(values)
    most, others = sizes.max(), (sizes > 0).sum()
    rounded = sizes.sum() >= (1 - ROUNDING) * most * others  # weights of a packed model
    scale = 1 / max(float(most if rounded else sizes.mean()), 1e-5)
    return np.clip(np.rint(values * scale), -1, 1).astype(np.int8), 1 / scale


def packed(signs: np.ndarray) -> np.ndarray:
    """−1, 0, 1 [d, f] → uint8 [⌈d/4⌉, f]: rows i, n+i, 2n+i and 3n+i, the first lowest."""
    rows = -(-len(signs) // 4)
    codes = np.zeros((4 * rows, signs.shape[1]), np.uint8)
    codes[: len(signs)] = signs + 1
    parts = codes.reshape(4, rows, -1)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def _unpacked(g: Graph, path: str, make: Callable[[], np.ndarray]) -> Value:
    """The codes 0, 1 and 2 of −1, 0 and 1, uint8 [d, f]; `make` gives them packed."""
    bits = g.derived(f"{path}/2bit", make)
    three = g.constant(3, np.uint8)
    parts = [
        g.op("BitwiseAnd", g.op("BitShift", bits, shift, direction="RIGHT"), three)
        for shift in (0, 2, 4, 6)
    ]
    return g.concat(*parts, axis=0).slice(0, 0, g.weights.shape(path)[0])
