"""wikigpt as a graph; the model is `jaxmodels/wikigpt/model.py`."""

from typing import Any

from bridge.onnx import language
from bridge.onnx.graph import Graph
from bridge.onnx.language import FILE, Cache
from bridge.onnx.layers import embed, gelu, heads, layer_norm, linear, tied_head

EPSILON = 1e-5

USE = language.USE


def graphs(config: Any, weights: Any) -> dict[str, Graph]:
    """`model.onnx`."""
    g = Graph("wikigpt", weights)
    sizes = _sizes(config)
    cache = Cache(g, sizes)
    text = language.read(g, cache)
    x = embed(g, text.ids, "embed/embedding") + g.weight("pos/embedding").take(text.positions)
    approximate = "tanh" if config.gelu == "tanh" else "none"
    for i, size in enumerate(sizes):
        block = f"blocks/{i}"
        y = linear(g, layer_norm(g, x, f"{block}/norm1", EPSILON), f"{block}/attn/qkv")
        q, k, v = (heads(part, *size) for part in y.split(3))
        x = x + linear(g, cache.attend(i, q, k, v, text.keep), f"{block}/attn/proj")
        y = linear(g, layer_norm(g, x, f"{block}/norm2", EPSILON), f"{block}/mlp/up")
        x = x + linear(g, gelu(g, y, approximate), f"{block}/mlp/out")
    x = layer_norm(g, x, "norm", EPSILON)
    g.output("logits", tied_head(g, x, "embed/embedding"), "batch", "length", config.vocab)
    return {FILE: g}


def difference(side: Any, model: Any, files: Any) -> float:
    """See `bridge.onnx`."""
    return language.difference(side, model, files, _sizes(model.config))


def _sizes(config: Any) -> list[tuple[int, int]]:
    """(heads, width) of each layer's keys."""
    return [(config.heads, config.dim // config.heads)] * config.layers
