"""Batches of random values for every architecture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import jaxmodels
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning.plan import Job
from jaxmodels.sizes import outline

Batch = dict[str, np.ndarray]

BATCHES = 8  # different ones, used in turn


def shapes(arch: str, config: Any, recipe: Recipe) -> dict[str, Any]:
    """Shape and dtype of the arrays of a micro-batch, by name, as in the data pipelines."""
    return Job(jaxmodels.arch(arch), config, replace(recipe, accum=1)).batch


def values(arrays: Mapping[str, Any], config: Any, count: int = BATCHES) -> list[Batch]:
    """`count` batches of these shapes, the same at every call and for every contestant.

    Texts are random tokens without padding, each one document; images are noise, with one caption
    each.
    """
    rng = np.random.default_rng(0)

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "tokens":
            return rng.integers(0, config.vocab, shape, np.int32)
        if name == "images":
            return rng.integers(0, 256, shape, np.uint8)
        if name == "image_id":
            return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
        return np.full(shape, name == "mask", np.int32)  # segments: one document

    stacked = {name: array(name, (count, *leaf.shape)) for name, leaf in arrays.items()}
    return [{name: stack[i] for name, stack in stacked.items()} for i in range(count)]


def targets(arch: str, config: Any, tokens: Any) -> Any:
    """The tokens [b, n] of [b, t + 1] that a language model's loss predicts."""
    package = jaxmodels.arch(arch)
    return package.targets(outline(package, config), tokens)


def units_per_step(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Tokens, and images if any, that a step processes."""
    rows, length = arrays["tokens"].shape
    if "images" in arrays:
        return {"tokens": rows * length, "images": rows}
    return {"tokens": rows * (length - 1)}
