"""Says what a checkpoint is and what is wrong with it, without executing or changing anything."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge.checkpoint.averages import CHOICE, RAW
from bridge.checkpoint.config import types_of, values_of
from bridge.checkpoint.opening import Checkpoint, bind
from bridge.checks.verification import but_for_the_card, digest_problems, told
from bridge.core.report import Report
from bridge.core.table import listing
from bridge.core.tensors import DTYPES, Tensor, digest_of, is_float
from bridge.formats import kind, recognise
from bridge.formats.raw import RawCheckpoint
from bridge.storage.safetensors_reader import promised
from jaxmodels.cli import visible
from jaxmodels.errors import MISMATCH, UNSAFE, Problem
from jaxmodels.runtime.files import files_below
from jaxmodels.runtime.paths import flatten

ALWAYS_READ, REPEATED = 2**28, 4  # bytes of values; times the size of the files
ENOUGH = 64  # values that do not fit a narrower dtype by chance
# Ending of a file's name → formats that it stands for.
_ENDINGS = {
    ".safetensors": ("safetensors",),
    ".pt": ("nanogpt", "bitgen"),
    ".pth": ("nanogpt", "dinov2-pth"),
    ".bin": ("nanogpt",),
    ".zip": ("wigip-zip",),
    ".gguf": ("gguf",),
    ".pkl": ("bwetaf",),
}


def inspect(
    path: str | Path, arch: str | None = None, config: Mapping[str, Any] | None = None
) -> Report:
    """What is it? Works on broken and unknown checkpoints too.

    Args:
        path: a file or folder.
        arch: the architecture, if the files do not say it.
        config: fields that the files cannot say, such as {"heads": 4}.

    Returns:
        `readable`; `damaged` (it is not readable, a digest is wrong, or what the files say and
        the tensors contradict each other); `format`, `arch` and `preset`
        (None where unknown); `tensors` and `parameters` (counts), `bytes` and `dtypes` (dtype →
        number of tensors) of the model, or of the files where no model is known;
        `vocab_present` (whether a vocabulary lies beside it); `config` and `assumed` (fields);
        `problems` and `notes` (sentences); `optimizer` (whether AdamW's state lies there too);
        `averaged` (whether a run keeps a running average of its weights too, with names in
        `ema.` where something is said of them);
        `unsafe` (it asks to run code, and was not read further);
        `listing` (name, shape and dtype of each tensor, in the file's names; of a truncated
        safetensors file, those in its header, and whether each is `cut_off`).

    Raises:
        Problem: (corrupt) there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    report = _empty(path)
    report["notes"] += _misnamed(path, report.format)
    try:
        contents = recognise(path)
    except Problem as problem:
        report["problems"].append(told(problem))
        if report.format == "safetensors" and path.is_file():
            _promised(report, path)
        return Report(report, unsafe=problem.exit_code == UNSAFE, damaged=True)
    report |= _said(contents)
    tokenizer = contents.tokenizer
    try:
        source = bind(contents, arch, {CHOICE: RAW, **(config or {})})
        report["notes"] += source.notes
        report |= _meaning(source)
        tokenizer = source.tokenizer
        report["notes"] += _unfit_moments(source)
    except Problem as problem:
        report["problems"].append(told(problem))
        report["notes"] += contents.notes
        # What the caller gave may be what is wrong, and strangers contradict nothing.
        known = contents.arch is not None and contents.arch in jaxmodels.ARCHS
        report["damaged"] = known and not (arch or config)
    if tokenizer is None and _reads_text(report.arch):
        report["notes"].append(
            "no vocabulary: token ids work, text does not until --vocab is given"
        )
    wrong = digest_problems(path)
    report["problems"] += [f"damaged: {line}" for line in wrong or []]
    report["damaged"] |= bool(but_for_the_card(wrong))
    _values(report, contents)
    report["damaged"] |= not report.readable
    return report


def _empty(path: Path) -> Report:
    return Report(
        path=str(path),
        readable=False,
        damaged=False,
        format=kind(path),
        arch=None,
        preset=None,
        tensors=0,
        parameters=0,
        bytes=0,
        dtypes={},
        vocab_present=False,
        optimizer=False,
        averaged=False,
        unsafe=False,
        config={},
        assumed={},
        problems=[],
        notes=[],
        listing=[],
    )


def _promised(report: Report, file: Path) -> None:
    """Adds what the header of a damaged safetensors file says, and which tensors are cut off."""
    try:
        tensors = promised(file)
    except Problem:
        return
    report["tensors"] = len(tensors)
    report["listing"] = [
        {"name": name, "shape": list(shape), "dtype": str(dtype), "cut_off": not whole}
        for name, (shape, dtype, whole) in tensors.items()
    ]
    if lost := [row["name"] for row in report.listing if row["cut_off"]]:
        heading = f"cut off, {len(lost)} of {len(tensors)} tensors"
        report["problems"].append(f"{heading}:\n{listing(lost)}")


def _counts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "dtypes": dict(Counter(str(tensor.dtype) for tensor in tensors.values())),
    }


def _said(contents: RawCheckpoint) -> dict[str, Any]:
    """What the files say, whether or not it makes a model."""
    names: dict[str, Any] = {}
    if contents.arch is not None and contents.arch in jaxmodels.ARCHS:
        names = types_of(jaxmodels.arch(contents.arch).Config)
    said = flatten(contents.fields, ".")
    return {
        **_counts(contents.tensors),
        "readable": True,
        "format": contents.format,
        "arch": contents.arch,
        "preset": contents.preset,
        "config": {name: said[name] for name in names if name in said},
        "optimizer": _has_moments(contents),
        "averaged": bool(contents.averaged),
        "vocab_present": contents.tokenizer is not None,
        "listing": [
            {"name": tensor.name, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
            for tensor in contents.tensors.values()
        ],
    }


def _has_moments(contents: RawCheckpoint) -> bool:
    try:
        return contents.moments() is not None
    except Problem:
        return True  # something is there; binding it says what is wrong with it


def _reads_text(arch: str | None) -> bool:
    if arch is None or arch not in jaxmodels.ARCHS:
        return True
    return "vocab" in types_of(jaxmodels.arch(arch).Config)


def _unfit_moments(source: Checkpoint) -> list[str]:
    """What keeps the optimiser's state from being carried along; the model is sound without it.

    Raises:
        Problem: (corrupt, unsafe) the state is damaged.
    """
    try:
        source.moments()
    except Problem as problem:
        if problem.exit_code != MISMATCH:
            raise
        return [f"only without --optimizer: {told(problem)}"]
    return []


def _meaning(source: Checkpoint) -> dict[str, Any]:
    """What only the model's table tells."""
    return {
        **_counts(source.tensors),
        "parameters": source.parameters,
        "arch": source.arch,
        "preset": source.preset,
        "config": values_of(source.config),
        "assumed": source.assumed,
    }


def _values(report: Report, contents: RawCheckpoint) -> None:
    """Reads every tensor once, and adds what looks wrong to problems, what is odd to notes."""
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
            report["problems"].append(told(problem))
            report["readable"] = False
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


def _misnamed(path: Path, found: str | None) -> list[str]:
    """What the name of a file says otherwise than its content."""
    says = _ENDINGS.get(path.suffix.lower())
    if not path.is_file() or says is None or found in (None, *says):
        return []
    return [f"it is called {path.name}, and its content is {found}: content decides"]


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
