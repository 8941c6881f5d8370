"""Which devices take part in a collective, in any of XLA's notations."""

import re
from math import prod

import numpy as np

_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}")
_IDS = re.compile(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")


def members(line: str, devices: int) -> tuple[int, ...]:
    """The devices of a collective's first group; all, if it names none.

    Of a permutation, those two, of all that exchange, which are farthest apart.
    """
    if listed := _LISTED.search(line):
        return _numbers(listed[1])
    if iota := _IOTA.search(line):
        count, size = int(iota[1]), int(iota[2])
        order = _transposed(np.arange(count * size), iota[3], iota[4])
        return tuple(order.reshape(count, size)[0].tolist())
    if mesh := _MESH.search(line):
        return _along(*mesh.groups())
    if pairs := _PAIRS.search(line):
        moved = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1]) if a != b]
        return max(moved, key=lambda pair: abs(pair[0] - pair[1]), default=(0,))
    return tuple(range(devices))


def _along(axes: str, order: str, named: str) -> tuple[int, ...]:
    """Of mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(2)2}: those along the named axes.

    `'b':(2)2` is a part of an axis: that with 2 numbers before it, of 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(prod(sizes.values()))
    if given := _IDS.search(order):
        ids = _transposed(ids, given[1], given[2])
    ids = ids.reshape(tuple(sizes.values()))
    at: list[slice | int] = [0] * len(sizes)
    for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named):
        stride = sizes[name] // (int(before) * int(part)) if part else 1
        count = int(part) if part else sizes[name]
        at[list(sizes).index(name)] = slice(0, count * stride, stride)
    return tuple(ids[tuple(at)].reshape(-1).tolist())


def _transposed(ids: np.ndarray, shape: str, order: str | None) -> np.ndarray:
    ids = ids.reshape(_numbers(shape))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
