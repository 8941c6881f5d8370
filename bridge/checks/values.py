"""Reads every tensor of a checkpoint once, and reports what is wrong with its values, or odd."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from bridge.checks.verification import format_problem
from bridge.core.report import Report
from bridge.core.tensors import DTYPES, Tensor, digest_of, is_float
from bridge.formats.raw import RawCheckpoint
from jaxmodels.cli import visible
from jaxmodels.errors import Problem
from jaxmodels.files import files_below

ALWAYS_READ, REPEATED = 2**28, 4  # bytes of values; times the size of the files
ENOUGH = 64  # values that do not fit a narrower dtype by chance


def look_at_values(report: Report, contents: RawCheckpoint, state: set[str]) -> None:
    """Reads every tensor once, and adds what looks wrong to problems, what is odd to notes.

    Tensors of `state`, such as an empty memory, may be all zero.
    """
    same: dict[str, list[str]] = defaultdict(list)
    rounded: dict[str, list[str]] = defaultdict(list)
    held = files_below(contents.path) if contents.path.is_dir() else [contents.path]
    left = max(ALWAYS_READ, REPEATED * sum(file.stat().st_size for file in held))
    unread = 0
    for tensor in _all(contents):
        left -= tensor.nbytes
        if not tensor.size or left < 0:  # many tensors may share one storage
            unread += tensor.size > 0
            continue
        try:
            array = tensor.read()
        except Problem as problem:
            report["problems"].append(format_problem(problem))
            report["readable"] = False
            continue
        if tensor.name in state and not array.any():
            continue
        if constant := _look(report, tensor, array):
            report["notes"].append(f"{visible(tensor.name)} is {constant} throughout")
        elif tensor.size > 1:
            same[digest_of(array)].append(tensor.name)
            if narrow := _narrower(array):
                rounded[narrow].append(tensor.name)
    if unread:
        report["notes"].append(
            f"the values of {unread} tensors were not looked at: together, tensors hold more than "
            f"{REPEATED} times as much as the files"
        )
    report["notes"] += [f"the same values: {_some(n, 10)}" for n in same.values() if len(n) > 1]
    report["notes"] += [
        f"{len(names)} tensors hold values of {narrow} only, in a wider dtype: they were cast "
        f"once ({_some(names, 3)})"
        for narrow, names in rounded.items()
    ]


def _all(contents: RawCheckpoint) -> list[Tensor]:
    """The tensors, and those that a run keeps an average of besides."""
    averaged = contents.averaged.items()
    others = [t for name, t in averaged if t is not contents.tensors.get(name)]
    return [*contents.tensors.values(), *(replace(t, name=f"ema.{t.name}") for t in others)]


def _some(names: list[str], most: int) -> str:
    """The first of these names, and whether there are more."""
    return ", ".join([*map(visible, names[:most]), *["…"][: len(names) > most]])


def _narrower(array: np.ndarray) -> str:
    """The narrowest dtype that holds these values exactly; "" for their own, or for few values."""
    if array.size < ENOUGH or array.dtype not in (DTYPES["F32"], DTYPES["F64"]):
        return ""
    flat = array.reshape(-1)

    def fit(values: np.ndarray, dtype: np.dtype) -> bool:
        with np.errstate(over="ignore"):
            kept = values.astype(dtype).astype(array.dtype)
        return np.array_equal(kept, values, equal_nan=True)

    for name in ("bfloat16", "float16", "float32"):
        dtype = DTYPES["BF16"] if name == "bfloat16" else np.dtype(name)
        if array.dtype != dtype and fit(flat[:ENOUGH], dtype) and fit(flat, dtype):
            return name
    return ""


def _look(report: Report, tensor: Tensor, array: np.ndarray) -> str:
    """The value of a tensor that holds one only, as biases, scales and single tokens do before
    training."""
    if not array.size or not is_float(tensor.dtype):
        return ""
    if bad := int(np.count_nonzero(~np.isfinite(array))):
        report["problems"].append(
            f"{visible(tensor.name)} has {bad} values that are NaN or infinite"
        )
        return ""
    first = array.reshape(-1)[0]
    if array.size == 1 or not (array == first).all():
        return ""
    if array.size > array.shape[-1] and first == 0:
        report["problems"].append(f"{visible(tensor.name)} is all zero")
        return ""
    return f"{float(first):g}"
