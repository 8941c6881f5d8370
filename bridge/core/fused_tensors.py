"""Tensors that are one in a file and several in a model, such as queries, keys and values.

In a table, "NAME[1]" is the second part of NAME, cut along its first axis into equal parts: as
many as the table has rows of it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np

from bridge.core.table import Rows
from bridge.core.tensors import Tensor
from jaxmodels.runtime.paths import pattern

_PART = re.compile(r"(.*)\[(\d+)\]")


def fused_name(name: str) -> str:
    """The tensor that a name is a part of: NAME of "NAME[1]"; other names stay as they are."""
    found = _PART.fullmatch(name)
    return found[1] if found else name


def names(rows: Rows, found: Iterable[str]) -> list[str]:
    """The names in a file, those of tensors that the rows know in parts by the names of these."""
    return [part for name in found for part in _parts(rows, name)]


def split(rows: Rows, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, those that the rows know in parts cut into them, still unread.

    What cannot be cut equally stays whole, for the check of names to report.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = _parts(rows, name)
        if len(parts) == 1 or not tensor.shape or tensor.shape[0] % len(parts):
            result[name] = tensor
            continue
        shape = tensor.shape[0] // len(parts), *tensor.shape[1:]
        for number, part in enumerate(parts):
            read = partial(_cut, tensor, number, len(parts))
            result[part] = replace(tensor, name=part, shape=shape, read=read)
    return result


def join(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split`: parts become the tensors of a file, in the place of their first."""
    groups: dict[str, list[Tensor]] = {}
    for name in sorted(tensors, key=_number):
        groups.setdefault(fused_name(name), []).append(tensors[name])
    result = {}
    for name in dict.fromkeys(map(fused_name, tensors)):
        parts = groups[name]
        if len(parts) == 1:
            result[name] = parts[0]
            continue
        shape = sum(part.shape[0] for part in parts), *parts[0].shape[1:]
        dtype = np.result_type(*(part.dtype for part in parts))
        result[name] = Tensor(name, shape, dtype, partial(_joined, parts))
    return result


def _parts(rows: Rows, name: str) -> list[str]:
    """NAME[0], NAME[1], …; NAME alone where the rows do not know it in parts."""
    numbers = sorted(number for of, number in _cut_rows(rows) if of.fullmatch(name))
    return [f"{name}[{number}]" for number in numbers] or [name]


@cache
def _cut_rows(rows: Rows) -> list[tuple[re.Pattern[str], int]]:
    """Which tensors in a file the rows know a part of, and its number."""
    found = (_PART.fullmatch(theirs) for _, theirs, _ in rows)
    return [(pattern(part[1]), int(part[2])) for part in found if part]


def _number(name: str) -> int:
    found = _PART.fullmatch(name)
    return int(found[2]) if found else 0


def _cut(tensor: Tensor, number: int, count: int) -> np.ndarray:
    return np.split(tensor.read(), count)[number]


def _joined(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([part.read() for part in parts])
