"""What the graphs of language models share: one graph for a prompt and for each token after it.

Inputs and outputs are named as transformers' exporter names them. A prompt is read with an empty
cache (p = 0); each next token is given with the cache that came out before.
"""

from typing import Any, NamedTuple

import numpy as np

from bridge.onnx.graph import Graph, Value
from bridge.onnx.layers import attention

FILE = "model.onnx"
USE = """A prompt is given with an empty cache (`past` = 0). Each next token is given with the cache
that came out before, `present.I` as `past_key_values.I`. `attention_mask` counts the tokens in the
cache too; padding (0) stands on the left."""
"""For the model card."""
STEPS = 3  # tokens that are checked one by one


class Text(NamedTuple):
    """What a language model reads."""

    ids: Value
    """int64 [b, t]."""
    positions: Value
    """int64 [b, t], counted from the first token that is not padding."""
    keep: Value
    """bool [b, 1, t, s]: which of the s = p + t tokens each sees."""


class Cache:
    """Keys and values of earlier tokens, an input and an output for each layer."""

    def __init__(self, g: Graph, sizes: list[tuple[int, int]], name: str = "past_key_values"):
        self._g = g
        axes = "batch", None, "past", None
        self._past = [
            [
                g.input(f"{name}.{i}.{part}", np.float32, axes[0], heads, axes[2], width)
                for part in ("key", "value")
            ]
            for i, (heads, width) in enumerate(sizes)
        ]
        self._sizes = sizes

    @property
    def length(self) -> Value:
        """p, the tokens in the cache, int64 [1]."""
        return self._past[0][0].size(2)

    def attend(self, layer: int, q: Value, k: Value, v: Value, keep: Value) -> Value:
        """Attention of the new tokens [b, h, t, k] to all; the cache gets them."""
        heads, width = self._sizes[layer]
        both = zip(self._past[layer], (k, v), ("key", "value"), strict=True)
        found = []
        for past, new, part in both:
            found.append(self._g.concat(past, new, axis=2))
            self._g.output(f"present.{layer}.{part}", found[-1], "batch", heads, "total", width)
        return attention(self._g, q, found[0], found[1], heads * width, keep)


def read(g: Graph, cache: Cache) -> Text:
    """The inputs of a language model besides its cache."""
    ids = g.input("input_ids", np.int64, "batch", "length")
    mask = g.input("attention_mask", np.int64, "batch", "total")
    return Text(ids, *placed(g, mask, cache.length))


def placed(g: Graph, mask: Value, past: Value) -> tuple[Value, Value]:
    """Positions [b, t], and which tokens each sees [b, 1, t, s]; mask [b, s], padding left."""
    new = g.range(past, mask.size(1))
    counted = g.op("CumSum", mask, g.constant(1, np.int64)) - 1
    positions = g.op("Max", counted, 0).take(new, axis=1)
    queries, keys = new.unsqueeze(1), g.range(0, mask.size(1)).unsqueeze(0)
    real = mask.cast(bool).unsqueeze(1, 2)
    seen = g.op("And", g.op("LessOrEqual", keys, queries), real)
    # Padding sees itself, so that no softmax is over nothing.
    return positions, g.op("Or", seen, g.op("Equal", keys, queries))


def difference(side: Any, model: Any, files: Any, sizes: list[tuple[int, int]]) -> float:
    """The largest difference of logits: of a prompt, of tokens one by one, with padding."""
    tokens = side.example(model.config)
    expected = side.jax_outputs(model, tokens)
    ids, (b, t) = tokens.astype(np.int64), tokens.shape
    past = empty(b, sizes)
    logits, _ = step(files, ids, np.ones_like(ids), past)
    found = [np.abs(logits - expected).max()]
    for row, padding in ((slice(None), 0), (slice(0, 1), 2)):  # another batch, and padding
        mask = np.ones((len(ids[row]), padding + t), np.int64)
        mask[:, :padding] = 0
        given = np.pad(ids[row], ((0, 0), (padding, 0)))
        past, start = empty(len(given), sizes), 0
        for end in range(max(t - STEPS, 1), t + 1):
            part = given[:, start : padding + end]
            logits, past = step(files, part, mask[:, : padding + end], past)
            found.append(np.abs(logits[:, -1] - expected[row, end - 1]).max())
            start = padding + end
    return float(max(found))


def empty(batch: int, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """A cache without tokens."""
    return [np.zeros((batch, h, 0, k), np.float32) for h, k in sizes for _ in range(2)]


def step(
    files: Any, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [b, t, v] of the next tokens, and the cache with them."""
    names = [f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(past))]
    given = {"input_ids": ids, "attention_mask": mask, **dict(zip(names, past, strict=True))}
    found = files.run(FILE, given)
    return found["logits"], [found[n.replace("past_key_values", "present")] for n in names]
