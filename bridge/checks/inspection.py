"""Describes a checkpoint and what is wrong with it, without executing or changing anything."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.checkpoint.averages import CHOICE, RAW
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.config import types_of, values_of
from bridge.checkpoint.opening import bind
from bridge.checks.values import look_at_values
from bridge.checks.verification import but_for_the_card, digest_problems, format_problem
from bridge.core.packing import TERNARY, Packed, value_counts
from bridge.core.report import Report
from bridge.core.table import listing
from bridge.core.tensors import Tensor
from bridge.formats import kind, misnamed, recognise
from bridge.formats.raw import RawCheckpoint
from bridge.storage.safetensors_reader import promised
from jaxmodels.errors import MISMATCH, UNSAFE, Problem
from jaxmodels.runtime.paths import flatten


def inspect(
    path: str | Path, arch: str | None = None, config: Mapping[str, Any] | None = None
) -> Report:
    """Describes a checkpoint without executing anything in it, even if it is damaged or unknown.

    Args:
        path: a file or folder.
        arch: the architecture, if the files do not determine it.
        config: fields that are not in the files, such as {"heads": 4}.

    Returns:
        `readable`; `damaged` (it is not readable, a digest is wrong, or its files contradict the
        tensors); `format`, `arch` and `preset` (None if unknown); `tensors` and `parameters`
        (counts), `bytes` and `dtypes` (dtype → number of tensors) of the model, or of the files if
        no model is recognised; `vocab_present` (whether there is a vocabulary); `config` and
        `assumed` (fields); `problems` and `notes` (sentences); `optimizer` (whether there is
        AdamW's state); `averaged` (whether a run keeps a running average of its weights, whose
        tensors are listed under `ema.`); `unsafe` (it asks to run code, and was not read further);
        `listing` (name in the files, shape and dtype of each tensor; for a 2-bit ternary one also
        `values`, the counts of −1, 0 and 1; for a truncated safetensors file, the tensors in its
        header, and whether each is `cut_off`).

    Raises:
        Problem: (corrupt) there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    report = _empty(path)
    if found := misnamed(path):
        report["notes"].append(
            f"it is called {path.name}, and its content is {found}: content decides"
        )
    try:
        contents = recognise(path)
    except Problem as problem:
        report["problems"].append(format_problem(problem))
        if report.format == "safetensors" and path.is_file():
            _promised(report, path)
        return Report(report, unsafe=problem.exit_code == UNSAFE, damaged=True)
    report |= _from_files(contents)
    tokenizer, state = contents.tokenizer, set[str]()
    try:
        source = bind(contents, arch, {CHOICE: RAW, **(config or {})})
        report["notes"] += source.notes
        report |= _from_model(source)
        tokenizer = source.tokenizer
        state = {pair.theirs for pair in source.pairs if pair.ours in source.state}
        report["notes"] += _unfit_moments(source)
    except Problem as problem:
        report["problems"].append(format_problem(problem))
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
    look_at_values(report, contents, state)
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


def _counts(tensors: Mapping[str, Tensor], packed: Mapping[str, Packed]) -> dict[str, Any]:
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "bytes": sum(packed.get(name, tensor).nbytes for name, tensor in tensors.items()),
        "dtypes": dict(Counter(_dtype(n, tensor, packed) for n, tensor in tensors.items())),
    }


def _dtype(name: str, tensor: Tensor, packed: Mapping[str, Packed]) -> str:
    return packed[name].kind if name in packed else str(tensor.dtype)


def _row(tensor: Tensor, packed: Mapping[str, Packed]) -> dict[str, Any]:
    """A tensor in the listing; of a ternary one also how often each value occurs."""
    name = tensor.name
    row: dict[str, Any] = {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": _dtype(name, tensor, packed),
    }
    if name in packed and packed[name].kind == TERNARY:
        with suppress(Problem):  # reading the values reports it
            row["values"] = value_counts(packed[name])
    return row


def _from_files(contents: RawCheckpoint) -> dict[str, Any]:
    """What the files say, whether or not it makes a model."""
    names: dict[str, Any] = {}
    if contents.arch is not None and contents.arch in jaxmodels.ARCHS:
        names = types_of(jaxmodels.arch(contents.arch).Config)
    stated = flatten(contents.fields, ".")
    return {
        **_counts(contents.tensors, contents.packed),
        "readable": True,
        "format": contents.format,
        "arch": contents.arch,
        "preset": contents.preset,
        "config": {name: stated[name] for name in names if name in stated},
        "optimizer": _has_moments(contents),
        "averaged": bool(contents.averaged),
        "vocab_present": contents.tokenizer is not None,
        "listing": [
            _row(tensor, contents.packed)
            for tensor in (contents.in_files or contents.tensors).values()
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
        return [f"only without --optimizer: {format_problem(problem)}"]
    return []


def _from_model(source: Checkpoint) -> dict[str, Any]:
    """What follows from the model's table."""
    return {
        **_counts(source.tensors, source.packed),
        "parameters": source.parameters,
        "arch": source.arch,
        "preset": source.preset,
        "config": values_of(source.config),
        "assumed": source.assumed,
    }
