"""State that belongs to a model and is not trained: queues, counters, scales.

The rows of a model's tables name it like parameters, and it goes wherever they go. State that no
row names (charlm counts its steps) begins anew with every model.

If all of a model's state is missing from a checkpoint it begins anew; if some is, that is an error.
"""

from functools import cache
from typing import Any

import numpy as np

import jaxmodels
from bridge.core.table import Shape
from bridge.core.tensors import Tensor
from jaxmodels.runtime.paths import pattern, split
from jaxmodels.sizes import outline


def state_shapes(arch: str, config: Any) -> dict[str, Shape]:
    """Our path → shape of the state that the tables of an architecture name."""
    return {path: tuple(leaf.shape) for path, leaf in _kept(arch, config).items()}


def begun(arch: str, config: Any) -> dict[str, Tensor]:
    """Our path → tensor, unread, of the state that a new model has."""
    read = cache(lambda: fresh_state(arch, config))
    return {
        path: Tensor(path, tuple(leaf.shape), np.dtype(leaf.dtype), lambda path=path: read()[path])  # type: ignore[misc]
        for path, leaf in _kept(arch, config).items()
    }


def fresh_state(arch: str, config: Any) -> dict[str, Any]:
    """Our path → array of all state of a new model, whose parameters are never drawn."""
    import jax

    from jaxmodels.layers.keys import keys

    package = jaxmodels.arch(arch)
    # Compiled, so that unused values are never computed.
    values = jax.jit(lambda: split(package.Model(config, rngs=keys(default=0)))[2])()
    return {path: np.asarray(value) for path, value in values.items()}


@cache
def unnamed(arch: str, config: Any) -> frozenset[str]:
    """Our paths of the state that no row names, and that begins anew with every model."""
    return frozenset(_rest(arch, config)) - frozenset(_kept(arch, config))


@cache
def _rest(arch: str, config: Any) -> dict[str, Any]:
    return split(outline(jaxmodels.arch(arch), config))[2]


@cache
def _kept(arch: str, config: Any) -> dict[str, Any]:
    package = jaxmodels.arch(arch)
    rest = _rest(arch, config)
    rows = [ours for ours, _, _ in package.WEIGHTS]
    return {p: leaf for p, leaf in rest.items() if any(pattern(row).fullmatch(p) for row in rows)}
