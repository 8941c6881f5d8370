"""dinov2 as a graph; the model is `jaxmodels/dinov2/model.py`."""

from typing import Any

import numpy as np

from bridge.onnx.graph import Graph, Value
from bridge.onnx.layers import attention, gelu, heads, layer_norm, linear, silu

FILE = "model.onnx"
USE = """Images are normalised: (RGB in [0, 1] − [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225];
height and width are multiples of the patch. The features are of the class token, of registers, and
of patches line by line."""
"""For the model card."""
# PyTorch's cubic kernels, by whether it antialiases; see `jaxmodels/layers/resize.py`.
_PLAIN, _ANTIALIASED = -0.75, -0.5


def graphs(config: Any, weights: Any) -> dict[str, Graph]:
    """`model.onnx`: normalised images of any size that patches fill → features."""
    g = Graph("dinov2", weights)
    pixels = g.input("pixel_values", np.float32, "batch", 3, "height", "width")
    g.output("last_hidden_state", tower(g, pixels, config), "batch", "tokens", config.dim)
    return {FILE: g}


def difference(side: Any, model: Any, files: Any) -> float:
    """See `bridge.onnx`; of images of other sizes too."""
    config = model.config
    images = side.example(config)
    rng = np.random.default_rng(1)
    sizes = (config.side * config.patch,) * 2, (2 * config.patch, config.patch)
    given = [images, *(rng.normal(size=(1, *size, 3)).astype(np.float32) for size in sizes)]
    found = []
    for pixels in given:
        expected = side.jax_outputs(model, pixels)
        out = files.run(FILE, {"pixel_values": pixels.transpose(0, 3, 1, 2)})
        found.append(np.abs(out["last_hidden_state"] - expected).max())
    return float(max(found))


def tower(g: Graph, pixels: Value, config: Any, path: str = "") -> Value:
    """Normalised images [b, 3, y, x] → features [b, t, d] after the final norm.

    `path` is where the tower is in its model: "vision/".
    """
    side, width = config.patch, config.dim // config.heads
    rows, columns = (g.op("Div", pixels.size(axis), side) for axis in (2, 3))
    # Fails where patches do not fill the image: nothing is cut off.
    pieces = pixels.reshape(0, 3, rows, side, columns, side).transpose(0, 2, 4, 3, 5, 1)
    kernel = g.derived(
        f"{path}patch/rows", lambda: g.weights.values(f"{path}patch/kernel").reshape(-1, config.dim)
    )
    x = pieces.reshape(0, -1, 3 * side**2) @ kernel + g.weight(f"{path}patch/bias")
    x = x + positions(g, rows, columns, config, path)
    cls = g.derived(f"{path}cls/placed", lambda: _first(g, config, path))
    first = g.op("Expand", cls, g.shape(pixels.size(0), 1 + config.registers, config.dim))
    x = g.concat(first, x, axis=1)
    for i in range(config.layers):
        block = f"{path}blocks/{i}"
        y = layer_norm(g, x, f"{block}/norm1")
        q, k, v = (
            heads(linear(g, y, f"{block}/attn/{part}"), config.heads, width) for part in "qkv"
        )
        y = linear(g, attention(g, q, k, v, config.dim, None), f"{block}/attn/proj")
        x = x + g.weight(f"{block}/ls1") * y
        y = _mlp(g, layer_norm(g, x, f"{block}/norm2"), f"{block}/mlp", config)
        x = x + g.weight(f"{block}/ls2") * y
    return layer_norm(g, x, f"{path}norm")


def positions(g: Graph, rows: Value, columns: Value, config: Any, path: str) -> Value:
    """Positions of a grid of patches, [1, n, d], interpolated in the model's own way."""
    side, plain = config.side, config.interpolation != "antialias"
    border = 2 if plain else 0

    def grid() -> np.ndarray:
        square = g.weights.values(f"{path}pos")[1:].reshape(side, side, -1)
        return np.pad(square, ((border, border), (border, border), (0, 0)), mode="edge")

    held = g.derived(f"{path}pos/grid", grid)
    learned = g.op("And", g.op("Equal", rows, side), g.op("Equal", columns, side))
    make = _plain if plain else _antialiased
    down, across = (make(g, count, learned, config) for count in (rows, columns))
    many = side + 2 * border
    lines = (down @ held.reshape(many, many * config.dim)).reshape(-1, many, config.dim)
    return (across @ lines).reshape(1, -1, config.dim)


def _plain(g: Graph, count: Value, learned: Value, config: Any) -> Value:
    """The matrix [count, side + 4] that resizes one axis, whose borders are repeated twice."""
    offset = 0.1 if config.interpolation == "scale_offset" else 0.0
    step = float(config.side) / (count.cast(np.float32) + offset)
    step = g.where(learned, 1.0, step)  # positions that were learned stay as they are
    place = (g.range(0, count).cast(np.float32) + 0.5) * step - 0.5
    taps = g.constant(np.arange(-2, config.side + 2)[None], np.float32)
    return _cubic(g, g.op("Abs", place.unsqueeze(1) - taps), _PLAIN)


def _antialiased(g: Graph, count: Value, learned: Value, config: Any) -> Value:
    """The same without borders, with a kernel that widens when there are to be fewer."""
    step = float(config.side) / count.cast(np.float32)
    centre = (g.range(0, count).cast(np.float32) + 0.5) * step
    taps = g.constant(np.arange(config.side)[None] + 0.5, np.float32)
    distance = g.op("Abs", taps - centre.unsqueeze(1)) / g.op("Max", step, 1.0)
    matrix = _cubic(g, distance, _ANTIALIASED)
    return matrix / matrix.sum(1)


def _cubic(g: Graph, x: Value, a: float) -> Value:
    """Keys' cubic convolution kernel of distances; zero from 2 on."""
    near = ((a + 2) * x - (a + 3)) * (x * x) + 1.0
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    within = g.where(g.op("Less", x, 2.0), far, 0.0)
    return g.where(g.op("LessOrEqual", x, 1.0), near, within)


def _mlp(g: Graph, x: Value, path: str, config: Any) -> Value:
    if config.mlp == "gelu":
        return linear(g, gelu(g, linear(g, x, f"{path}/fc1")), f"{path}/fc2")
    gate = silu(g, linear(g, x, f"{path}/gate"))
    return linear(g, gate * linear(g, x, f"{path}/up"), f"{path}/down")


def _first(g: Graph, config: Any, path: str) -> np.ndarray:
    """The class token at its position, and registers: [1, 1 + r, d]."""
    values = g.weights.values
    cls = [(values(f"{path}cls") + values(f"{path}pos")[0])[None]]
    registers = [values(f"{path}registers")] if config.registers else []
    return np.concatenate([*cls, *registers])[None]
