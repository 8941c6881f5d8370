"""Blocks that a model runs in a scan lie in one array; the bridge names each on its own.

`SCANNED` of a model's layout says which. Here is the border: what a run saved is cut into blocks
when it is opened, and blocks become one array when a model is made of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import jaxmodels
from bridge.core.tensors import Tensor
from bridge.storage.orbax import OrbaxArray
from jaxmodels.architecture import Architecture
from jaxmodels.runtime.paths import stack, unstack


def stacked_in(package: Architecture) -> tuple[str, ...]:
    """The subtrees whose arrays hold all blocks of a model; most models have none."""
    return package.SCANNED


def unstack_blocks(tensors: Mapping[str, Tensor], arch: str | None) -> dict[str, Tensor]:
    """Tensors by name, joined with dots, those of all blocks cut into one for each.

    Args:
        tensors: their name → tensor, as a run or another save of our parameters has them.
        arch: the architecture, if the files say it; else names of any are cut.
    """
    names = [arch] if arch and arch in jaxmodels.ARCHS else list(jaxmodels.ARCHS)
    roots = {root for name in names for root in stacked_in(jaxmodels.arch(name))}
    whole = {
        name
        for root in roots
        for name in tensors
        if name.startswith(f"{root}.") and not name[len(root) + 1 :].split(".")[0].isdecimal()
    }
    if not whole:
        return dict(tensors)
    held = {name.replace(".", "/"): _Whole(tensors[name]) for name in whole}
    cut = unstack(held, tuple(roots), lambda leaf, i: leaf.part(i))
    named = {path.replace("/", "."): tensor for path, tensor in cut.items()}
    others = {name: tensor for name, tensor in tensors.items() if name not in whole}
    return others | {name: _named(name, tensor) for name, tensor in named.items()}


def stack_blocks(
    tensors: Mapping[str, Tensor], package: Architecture, read: Callable[[Tensor], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The model's own paths and their values, one after the other, blocks joined again.

    Args:
        tensors: our path → tensor, named block by block.
        package: the model's package.
        read: gives a tensor's values.
    """
    groups: dict[str, Any] = stack(dict(tensors), stacked_in(package), join=list)
    for path, held in groups.items():
        yield path, np.stack([read(t) for t in held]) if isinstance(held, list) else read(held)


def _named(name: str, tensor: Tensor) -> Tensor:
    return Tensor(name, tensor.shape, tensor.dtype, tensor.read)


class _Whole:
    """A tensor of all blocks: read block by block where it lies so, else read once and kept until
    every block was taken from it."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.shape = tensor, tensor.shape
        self._array: np.ndarray | None = None
        self._taken: set[int] = set()

    def part(self, i: int) -> Tensor:
        """Block i, unread."""
        tensor = self.tensor
        return Tensor(tensor.name, tensor.shape[1:], tensor.dtype, lambda: self._read(i))

    def _read(self, i: int) -> np.ndarray:
        stored = self.tensor.read
        if isinstance(stored, OrbaxArray) and stored.in_rows:
            return stored.row(i)
        array = self.tensor.read() if self._array is None else self._array
        self._taken.add(i)
        done = len(self._taken) == self.shape[0]
        self._array = None if done else array
        if done:
            self._taken.clear()
        return array[i]
