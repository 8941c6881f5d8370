"""Compares two checkpoints, whatever their formats, under our names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.checkpoint.averages import as_in
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.config import values_of
from bridge.checkpoint.opening import bind
from bridge.core.report import Report
from bridge.core.tensors import compare
from bridge.formats import recognise
from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import Problem


def diff(a: str | Path, b: str | Path, config: Mapping[str, Any] | None = None) -> Report:
    """Compares two checkpoints tensor by tensor.

    Args:
        a: one checkpoint.
        b: the other.
        config: fields that are in neither's files, such as {"heads": 4}.

    Returns:
        `same` (all values and the config are equal; dtypes may differ if no value does);
        `arch` ([a, b]; if they differ, nothing else is compared);
        `config` (field → [a, b], of those that differ); `tensors`: for each of our paths `status`
        ("equal", "different", "shape", "missing": only in a, "extra": only in b), and where they
        apply `shape`, `dtype`, `max_abs` (largest difference) and `cosine`.

    Raises:
        Problem: as `bridge.load`, for either.
    """
    contents, others = recognise(Path(a)), recognise(Path(b))
    left = bind(contents, config=as_in(others.origin, contents, config))
    right = _other(others, left, as_in(contents.origin, others, config))
    arch = [left.arch, right.arch]
    if left.arch != right.arch:
        return Report(same=False, arch=arch, config={}, tensors={})
    paths = [*left.tensors, *(path for path in right.tensors if path not in left.tensors)]
    tensors = {path: _compare(path, left, right) for path in paths}
    # Fields that one of them had to assume tell nothing.
    unsure = left.assumed.keys() | right.assumed.keys()
    ours, theirs = values_of(left.config), values_of(right.config)
    config = {k: [ours[k], theirs[k]] for k in ours if ours[k] != theirs[k] and k not in unsure}
    same = not config and all(row["status"] == "equal" for row in tensors.values())
    return Report(same=same, arch=arch, config=config, tensors=tensors)


def _other(contents: RawCheckpoint, left: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The second checkpoint; what its files cannot say is taken from the first if possible."""
    if contents.arch not in (None, left.arch):
        return bind(contents, config=config)
    try:
        return bind(contents, left.arch, config, conventions=values_of(left.config))
    except Problem:
        right = bind(contents, config=config)  # which names it, if it is of an architecture at all
        if right.arch == left.arch:
            raise
        return right


def _compare(path: str, left: Checkpoint, right: Checkpoint) -> dict[str, Any]:
    a, b = left.tensors.get(path), right.tensors.get(path)
    if a is None or b is None:
        return {"status": "extra" if a is None else "missing"}
    shapes = {"shape": [list(a.shape), list(b.shape)], "dtype": [str(a.dtype), str(b.dtype)]}
    if a.shape != b.shape:
        return {"status": "shape", **shapes}
    result = compare(a.read(), b.read())
    return {"status": "equal" if result.pop("equal") else "different", **shapes, **result}
