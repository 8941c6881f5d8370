"""charlm as a graph; the model is `jaxmodels/charlm/model.py`."""

from typing import Any

from bridge.onnx import language
from bridge.onnx.graph import Graph
from bridge.onnx.language import FILE, Cache
from bridge.onnx.layers import (
    embed,
    heads,
    layer_norm,
    linear,
    rotate,
    rotation,
    value_first_swiglu,
)

USE = language.USE


def graphs(config: Any, weights: Any) -> dict[str, Graph]:
    """`model.onnx`."""
    g = Graph("charlm", weights)
    sizes = _sizes(config)
    cache = Cache(g, sizes)
    text = language.read(g, cache)
    x = embed(g, text.ids, "embed/embedding")
    rope = rotation(g, text.positions, config.dim // config.heads)
    for i, size in enumerate(sizes):
        block = f"blocks/{i}"
        y = linear(g, layer_norm(g, x, f"{block}/norm1"), f"{block}/attn/qkv")
        q, k, v = (heads(part, *size) for part in y.split(3))
        q, k = (rotate(g, part, rope, *size) for part in (q, k))
        x = x + linear(g, cache.attend(i, q, k, v, text.keep), f"{block}/attn/proj")
        x = x + value_first_swiglu(g, layer_norm(g, x, f"{block}/norm2"), f"{block}/mlp")
    x = layer_norm(g, x, "norm")
    g.output("logits", linear(g, x, "head"), "batch", "length", config.vocab)
    return {FILE: g}


def difference(side: Any, model: Any, files: Any) -> float:
    """See `bridge.onnx`."""
    return language.difference(side, model, files, _sizes(model.config))


def _sizes(config: Any) -> list[tuple[int, int]]:
    """(heads, width) of each layer's keys."""
    return [(config.heads, config.dim // config.heads)] * config.layers
