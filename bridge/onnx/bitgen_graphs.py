"""bitgen as graphs; the model is `jaxmodels/bitgen/model.py`.

| file | inputs | outputs |
|---|---|---|
| `image_encoder.onnx` | pixel_values | image_tokens, image_features |
| `text_encoder.onnx` | input_ids, attention_mask | text_features, codes |
| `context.onnx` | image_tokens, features | cross.I.key, cross.I.value |
| `decoder.onnx` | input_ids, attention_mask, cross.…, past_key_values.… | logits, present.… |

See `USE`.
"""

from typing import Any

import numpy as np

from bridge.onnx.dinov2 import tower
from bridge.onnx.graph import Graph, Value
from bridge.onnx.language import Cache, placed
from bridge.onnx.layers import (
    attention,
    embed,
    heads,
    linear,
    rms_norm,
    ternary_linear,
    tied_head,
)

IMAGE, TEXT = "image_encoder.onnx", "text_encoder.onnx"
CONTEXT, DECODER = "context.onnx", "decoder.onnx"
USE = """Images are RGB in [0, 1], not normalised. The product of unit features is their similarity.

`context.onnx` reads the memory at the features, and gives what the decoder looks at: an image and
what is remembered of it, or with no image tokens (p = 0) the memory alone. The first token that the
decoder reads stands for its learned start, whatever its id is. It writes as language models do: a
prompt with an empty cache, then token by token with `present.I` as `past_key_values.I`.

`examples/edge` of jaxmodels captions, compares, searches and recalls with numpy alone."""
"""For the model card."""
# Values inside of graphs by which they are cut when they are checked.
TOWER, TOKEN = "tower_features", "memory_token"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def graphs(config: Any, weights: Any) -> dict[str, Graph]:
    """The four files."""
    made = {IMAGE: _image, TEXT: _text, CONTEXT: _context, DECODER: _decoder}
    return {name: make(Graph(f"bitgen {name}", weights), config) for name, make in made.items()}


def sizes(config: Any) -> list[tuple[int, int]]:
    """(heads, width) of the keys of each layer of the decoder."""
    return [(config.heads, config.dim // config.heads)] * config.decoder_layers


def _image(g: Graph, config: Any) -> Graph:
    side, merge, tower_config = config.image_size, config.merge, config.dinov2
    pixels = g.input("pixel_values", np.float32, "batch", 3, side, side)
    mean, std = (g.constant(np.reshape(x, (3, 1, 1)), np.float32) for x in (_MEAN, _STD))
    x = g.op("Identity", tower(g, (pixels - mean) / std, tower_config, "vision/"), out=TOWER)
    dim, first = tower_config.dim, 1 + tower_config.registers
    rows = side // tower_config.patch // merge
    patches = x.slice(1, first, first + (rows * merge) ** 2)
    squares = patches.reshape(0, rows, merge, rows, merge, dim).transpose(0, 1, 3, 2, 4, 5)
    squares = squares.reshape(0, rows**2, merge**2 * dim)
    cls = g.concat(*[x.slice(1, 0, 1)] * merge**2, axis=2)
    y = linear(g, g.concat(cls, squares, axis=1), "project")
    for i in range(config.image_layers):
        y = _block(g, y, f"image/{i}", config, None)
    y = rms_norm(g, y, "image_norm")
    g.output("image_tokens", y, "batch", 1 + rows**2, config.dim)
    pooled = y.mean(1).reshape(0, config.dim)
    g.output("image_features", _pooled(g, pooled, "image_pool"), "batch", config.dim)
    return g


def _text(g: Graph, config: Any) -> Graph:
    ids = g.input("input_ids", np.int64, "batch", "length")
    mask = g.input("attention_mask", np.int64, "batch", "length")
    order = g.range(0, ids.size(1)).unsqueeze(0)
    real = g.op("Equal", mask, 1)
    nothing = g.op("Not", g.op("Equal", mask.max(1), 1))  # one token at least
    real = g.op("Or", real, g.op("And", nothing, g.op("Equal", order, 0)))
    counted = g.op("CumSum", real.cast(np.int64), g.constant(1, np.int64)) - 1
    places = g.where(real, counted, order)
    x = embed(g, ids, "embed/embedding") + g.weight("pos/embedding").take(places)
    for i in range(config.layers):
        x = _block(g, x, f"text/{i}", config, real.unsqueeze(1, 2))
    weight = real.cast(np.float32)
    weight = (weight / weight.sum(1)).unsqueeze(-1)
    pooled = (rms_norm(g, x, "text_norm") * weight).sum(1).reshape(0, config.dim)
    g.output("text_features", _pooled(g, pooled, "text_pool"), "batch", config.dim)
    code = linear(g, pooled, "memory/code")
    code = g.op(
        "LayerNormalization",
        code,
        g.constant(np.ones(config.dim), np.float32),
        axis=-1,
        epsilon=1e-6,
    )
    g.output("codes", code, "batch", config.dim)
    return g


def _context(g: Graph, config: Any) -> Graph:
    tokens = g.input("image_tokens", np.float32, "batch", "tokens", config.dim)
    features = g.input("features", np.float32, "batch", config.dim)
    address = g.derived("memory/address", lambda: _address(g.weights.values, config))
    slots = g.derived("memory/slots", lambda: _slots(g.weights.values, config))
    token = linear(g, features @ address @ slots, "memory/out").unsqueeze(1)
    both = g.concat(tokens, g.op("Identity", token, out=TOKEN), axis=1)
    for i, size in enumerate(sizes(config)):
        parts = ternary_linear(g, both, f"decoder/blocks/{i}/cross/kv").split(2)
        for part, name in zip(parts, ("key", "value"), strict=True):
            g.output(f"cross.{i}.{name}", heads(part, *size), "batch", size[0], "seen", size[1])
    return g


def _decoder(g: Graph, config: Any) -> Graph:
    cache = Cache(g, sizes(config))
    ids = g.input("input_ids", np.int64, "batch", "length")
    mask = g.input("attention_mask", np.int64, "batch", "total")
    places, keep = placed(g, mask, cache.length)
    text = embed(g, ids, "embed/embedding")
    text = text + g.weight("pos/embedding").take(g.op("Max", places - 1, 0))
    x = g.where(g.op("Equal", places, 0).unsqueeze(-1), g.weight("decoder/start"), text)
    for i, size in enumerate(sizes(config)):
        block = f"decoder/blocks/{i}"
        seen = [
            g.input(f"cross.{i}.{name}", np.float32, "batch", size[0], "seen", size[1])
            for name in ("key", "value")
        ]
        q, k, v = (heads(p, *size) for p in ternary_linear(g, x, f"{block}/attn/qkv").split(3))
        x = x + ternary_linear(g, cache.attend(i, q, k, v, keep), f"{block}/attn/proj")
        q = heads(ternary_linear(g, x, f"{block}/cross/q"), *size)
        out = attention(g, q, seen[0], seen[1], config.dim, None)
        x = x + ternary_linear(g, out, f"{block}/cross/proj")
        x = x + _mlp(g, x, f"{block}/mlp")
    x = rms_norm(g, x, "decoder/norm")
    g.output("logits", tied_head(g, x, "embed/embedding"), "batch", "length", config.vocab)
    return g


def _block(g: Graph, x: Value, path: str, config: Any, keep: Value | None) -> Value:
    """A block of an encoder that sees its own side only."""
    size = config.heads, config.dim // config.heads
    q, k, v = (heads(p, *size) for p in ternary_linear(g, x, f"{path}/attn/qkv").split(3))
    x = x + ternary_linear(g, attention(g, q, k, v, config.dim, keep), f"{path}/attn/proj")
    return x + _mlp(g, x, f"{path}/mlp")


def _mlp(g: Graph, x: Value, path: str) -> Value:
    hidden = g.op("Relu", ternary_linear(g, x, f"{path}/up"))
    return ternary_linear(g, hidden * hidden, f"{path}/out")


def _pooled(g: Graph, x: Value, path: str) -> Value:
    """A mean over tokens [b, d] as a unit vector."""
    x = linear(g, g.op("Tanh", linear(g, x, f"{path}/dense")), f"{path}/proj")
    return x / g.op("Sqrt", g.op("Max", (x * x).sum(), 1e-12))


def _address(values: Any, config: Any) -> np.ndarray:
    """What features are multiplied by to be addresses, [d, m]; see `larimar.address`."""
    keys = values("memory/keys").astype(np.float64)
    if config.addressing == "ridge":
        gram = keys @ keys.T + config.noise**2 * np.eye(len(keys))
        return np.linalg.solve(gram, keys).T.astype(np.float32)
    inverse = keys.T / (np.abs(keys).sum(0).max() * np.abs(keys).sum(1).max())
    for _ in range(30):
        inverse = 2 * inverse - inverse @ (keys @ inverse)
    return inverse.astype(np.float32)


def _slots(values: Any, config: Any) -> np.ndarray:
    """What is believed of the slots after all that was written, [m, d]; see `larimar`."""
    names = ("mean", "log_variance", "gram", "total")
    mean, log_variance, gram, total = (values(f"memory/{x}").astype(np.float64) for x in names)
    before = config.noise**2 * np.exp(-log_variance)
    found = np.linalg.solve(np.diag(before) + gram, before[:, None] * mean + total)
    return found.astype(np.float32)
