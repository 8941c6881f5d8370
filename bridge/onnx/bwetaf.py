"""bwetaf as a graph; the model is `jaxmodels/bwetaf/model.py`."""

from typing import Any

from bridge.onnx import language
from bridge.onnx.graph import Graph, Value
from bridge.onnx.language import FILE, Cache
from bridge.onnx.layers import (
    embed,
    heads,
    linear,
    rms_norm,
    rotate,
    rotation,
    tied_head,
    value_first_swiglu,
)

EPSILON = 1e-8

USE = language.USE


def graphs(config: Any, weights: Any) -> dict[str, Graph]:
    """`model.onnx`."""
    g = Graph("bwetaf", weights)
    sizes = _sizes(config)
    cache = Cache(g, sizes)
    text = language.read(g, cache)
    x = embed(g, text.ids, "embed/embedding") * config.embed_scale
    x = _placed(g, x, rotation(g, text.positions, config.dim), config)
    for i, size in enumerate(sizes):
        block = f"blocks/{i}"
        y = rms_norm(g, x, f"{block}/norm1", EPSILON)
        q, k, v = (heads(linear(g, y, f"{block}/attn/{part}"), *size) for part in "qkv")
        if config.rotate_qk:
            rope = rotation(g, text.positions, size[1])
            q, k = (rotate(g, part, rope, *size) for part in (q, k))
        out = linear(g, cache.attend(i, q, k, v, text.keep), f"{block}/attn/proj")
        x = out + config.residual_scale * x
        y = value_first_swiglu(g, rms_norm(g, x, f"{block}/norm2", EPSILON), f"{block}/mlp")
        x = y + config.residual_scale * x
    g.output("logits", tied_head(g, x, "embed/embedding"), "batch", "length", config.vocab)
    return {FILE: g}


def difference(side: Any, model: Any, files: Any) -> float:
    """See `bridge.onnx`."""
    return language.difference(side, model, files, _sizes(model.config))


def _placed(g: Graph, x: Value, rope: tuple[Value, Value], config: Any) -> Value:
    """Embeddings that know their positions: rotated as the seed does it, or with a sinusoid."""
    cos, sin = rope
    if config.positions != "rotate":
        pairs = g.concat(sin.unsqueeze(-1), cos.unsqueeze(-1), axis=-1)
        return x + pairs.reshape(0, 0, config.dim)
    twice = [
        g.concat(part.unsqueeze(-1), part.unsqueeze(-1), axis=-1).reshape(0, 0, config.dim)
        for part in (cos, sin)
    ]
    first, second = x.split(2)
    return x * twice[0] + g.concat(-second, first, axis=-1) * twice[1]


def _sizes(config: Any) -> list[tuple[int, int]]:
    """(heads, width) of each layer's keys."""
    return [(heads, config.dim // heads) for heads in config.heads_by_layer]
