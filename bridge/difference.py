"""Compares two checkpoints, whatever their formats, under our names."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge.formats import recognise
from bridge.report import Report
from bridge.sources import Source, bind, open_source
from bridge.tensors import compare


def diff(a: str | Path, b: str | Path) -> Report:
    """Tensor by tensor: missing, extra, shape, dtype, largest difference, cosine.

    Returns:
        `same` (all values and the config are equal; dtypes may differ where no value does);
        `config` (field → [a, b] where they differ); `tensors`: for each of our paths `status`
        ("equal", "different", "shape", "missing": only in a, "extra": only in b), and `shape`,
        `dtype`, `max_abs`, `cosine` where they apply.

    Raises:
        Problem: as `bridge.load`, for either.
    """
    left = open_source(a)
    # Fields that b cannot say are taken from a; fields that a had to assume tell nothing.
    right = bind(recognise(Path(b)), left.arch, conventions=asdict(left.config))
    paths = [*left.tensors, *(path for path in right.tensors if path not in left.tensors)]
    tensors = {path: _compare(path, left, right) for path in paths}
    unsure = left.assumed.keys() | right.assumed.keys()
    ours, theirs = asdict(left.config), asdict(right.config)
    config = {k: [ours[k], theirs[k]] for k in ours if ours[k] != theirs[k] and k not in unsure}
    same = not config and all(row["status"] == "equal" for row in tensors.values())
    return Report(same=same, config=config, tensors=tensors)


def _compare(path: str, left: Source, right: Source) -> dict[str, Any]:
    a, b = left.tensors.get(path), right.tensors.get(path)
    if a is None or b is None:
        return {"status": "extra" if a is None else "missing"}
    shapes = {"shape": [list(a.shape), list(b.shape)], "dtype": [str(a.dtype), str(b.dtype)]}
    if a.shape != b.shape:
        return {"status": "shape", **shapes}
    result = compare(a.read(), b.read())
    return {"status": "equal" if result.pop("equal") else "different", **shapes, **result}
