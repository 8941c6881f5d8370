"""Batches of random values, of every kind that an architecture trains on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import jaxmodels
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning.plan import Job
from jaxmodels.sizes import outline

Batch = dict[str, np.ndarray]

BATCHES = 8  # different ones, taken in turn


def shapes(arch: str, config: Any, recipe: Recipe) -> dict[str, Any]:
    """The arrays of a micro-batch, by name: shape and dtype, as the data pipelines make them."""
    return Job(jaxmodels.arch(arch), config, replace(recipe, accum=1)).batch


def values(wanted: Mapping[str, Any], config: Any, count: int = BATCHES) -> list[Batch]:
    """So many batches of these shapes, the same at every call, for every contestant.

    Texts are random tokens without padding, all of one document; images are noise, and each has a
    caption of its own.
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

    whole = {name: array(name, (count, *leaf.shape)) for name, leaf in wanted.items()}
    return [{name: part[i] for name, part in whole.items()} for i in range(count)]


def targets(arch: str, config: Any, tokens: Any) -> Any:
    """The tokens [b, n] of [b, t + 1] that a language model's loss predicts."""
    package = jaxmodels.arch(arch)
    return package.targets(outline(package, config), tokens)


def counted(wanted: Mapping[str, Any]) -> dict[str, int]:
    """What a step gets through: tokens, and images where there are any."""
    rows, length = wanted["tokens"].shape
    if "images" in wanted:
        return {"tokens": rows * length, "images": rows}
    return {"tokens": rows * (length - 1)}
