"""Which architecture and table a checkpoint follows, and which of its tensors are no parameters.

nanoGPT's and GPT-2's tables have the same names and differ in the layout of kernels. The format
decides where it is known, and shapes where it is not: every table whose names fit equally well is
tried.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge.core import fused_tensors, table
from bridge.core.layouts import tables, ties_of
from bridge.core.table import Rows
from bridge.core.tensors import Tensor, is_float, raw
from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.paths import pattern

_MERGE = "merge it first, with peft's merge_and_unload(), and save the result"
_APPLY = "apply it first (torch.nn.utils, its remove_ functions), and save the state dict again"
# Part of a name → what the tensor means, and what to do.
_REPARAMETRISED = {
    re.compile(r"\.(lora_(A|B|embedding_[AB]|magnitude_vector)|ia3_l|hada_w1_a|lokr_w1)\b"): (
        "there is an adapter (LoRA or the like) beside them",
        _MERGE,
    ),
    re.compile(r"\.(weight|bias)_(orig|mask)$"): ("they are pruned, or normed by spectrum", _APPLY),
    re.compile(r"\.weight_[gv]$"): ("they are normed (weight_norm)", _APPLY),
    re.compile(r"\.parametrizations\."): ("they are parametrised", _APPLY),
}
_BUFFER = 2**26  # numbers in the largest that is looked at: a mask of 8,192 positions
BASE = 10_000.0  # of rotary positions, as in jaxmodels/layers/rotary.py


def candidate_tables(
    contents: RawCheckpoint, found: Mapping[str, Tensor], arch: str | None
) -> tuple[str, list[tuple[str, Rows]]]:
    """The architecture, and its tables (with their labels) whose names fit best.

    Two tables may have the same names and differ in layout only; then the shapes decide.
    """
    stated = arch or contents.arch
    fits: dict[str, list[tuple[float, str, Rows]]] = {}
    for name in dict.fromkeys([*([stated] if stated else []), *jaxmodels.ARCHS]):
        package = jaxmodels.arch(name)
        ties = {tied for tied, _ in ties_of(package)}
        names = [name for name in found if name not in ties]
        chosen = contents.table if name == contents.arch else None
        fits[name] = [
            (table.coverage(rows, fused_tensors.names(rows, names)), label, rows)
            for label, rows in tables(package)
            if chosen in (None, label)
        ]
    best = {name: max(score for score, *_ in entries) for name, entries in fits.items()}
    closest = max(best, key=lambda name: best[name])
    name = stated or closest
    other = stated is not None and closest != stated and best[closest] > best[name] + 0.25
    if best[name] == 0 or other or (stated is None and best[name] < 0.5):
        raise _stranger(contents, found, arch, stated, closest, best[closest])
    return name, [(label, rows) for score, label, rows in fits[name] if score == best[name]]


def leave_other_heads(package: Any, found: dict[str, Tensor]) -> list[str]:
    """Removes the heads for other tasks that the package's layout lists; returns notes."""
    known = [pattern(each) for each in package.OTHER_HEADS]
    heads = [name for name in found if any(each.fullmatch(name) for each in known)]
    for name in heads:
        del found[name]
    return [f"left out: {name}, a head for another task" for name in heads]


def _stranger(
    contents: RawCheckpoint,
    found: Mapping[str, Tensor],
    arch: str | None,
    stated: str | None,
    closest: str,
    fit: float,
) -> Problem:
    right = f"give {closest} instead of {arch}" if arch else "fetch config and tensors again"
    return Problem(
        "the tensors match no known architecture"
        if stated is None
        else f"the tensors are not those of {stated}",
        where=str(contents.path),
        why="it holds:\n"
        + table.listing([str(t) for t in found.values()])
        + (f"\nclosest is {closest}: {fit:.0%} of names fit" if fit else ""),
        fix=f"they are those of {closest}: {right}"
        if stated and fit >= 0.5
        else f"known architectures: {', '.join(jaxmodels.ARCHS)}",
        exit_code=MISMATCH,
    )


def check_plain(names: Iterable[str], where: Path) -> None:
    """Refuses weights that are not stored as the model uses them: adapters, pruning and the like.

    Raises:
        Problem: (mismatch) a name says so.
    """
    for name in names:
        for words, (what, fix) in _REPARAMETRISED.items():
            if words.search(name):
                raise Problem(
                    f"the weights are not stored as the model uses them: {what}",
                    where=str(where),
                    why=f"it holds {name}; what the model computes depends on all parts",
                    fix=fix,
                    exit_code=MISMATCH,
                )


def check_numbers(parameters: Iterable[Tensor], where: Path) -> None:
    """Refuses parameters that are not floating-point numbers.

    Raises:
        Problem: (mismatch) some are not.
    """
    if wrong := [str(tensor) for tensor in parameters if not is_float(tensor.dtype)]:
        raise Problem(
            "parameters are not floating-point numbers",
            where=str(where),
            why=f"a quantised model, whose scales would be lost:\n{table.listing(wrong)}",
            fix="use a checkpoint of the model that was not quantised",
            exit_code=MISMATCH,
        )


def leave_buffers(package: Any, found: dict[str, Tensor], where: Path) -> None:
    """Removes the buffers that the package's layout lists, if the model computes the same values:
    the causal mask of older GPT-2 files, rotary frequencies.

    Raises:
        Problem: (mismatch) one has other values.
    """
    known = [pattern(each) for each in package.BUFFERS]
    for name in [name for name in found if any(each.fullmatch(name) for each in known)]:
        tensor = found[name]
        square = len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
        if name.endswith("bias") and not square and tensor.size > 1:
            continue  # a bias of something: it is unexpected
        del found[name]
        if tensor.size > _BUFFER or name.endswith("masked_bias"):
            continue
        if name.endswith("bias"):
            causal = np.tril(np.ones(tensor.shape, bool))
            if not np.array_equal(tensor.read() != 0, causal):
                raise _other_buffer(name, "a mask of attention, and not the causal one", where)
        elif name.endswith("inv_freq"):
            usual = BASE ** -(np.arange(tensor.size) / tensor.size)
            if not np.allclose(tensor.read().astype(np.float64).ravel(), usual, rtol=0.01):
                what = f"frequencies of a rotation, and not those of the base {BASE:,.0f}"
                raise _other_buffer(name, what, where)


def _other_buffer(name: str, what: str, where: Path) -> Problem:
    return Problem(
        f"{name} is {what}",
        where=str(where),
        why="what its model computes is computed by no architecture here",
        fix="use a checkpoint of a model that was not changed so",
        exit_code=MISMATCH,
    )


def drop_ties(package: Any, rows: Rows, found: dict[str, Tensor], where: Path) -> list[str]:
    """Removes tensors that must repeat another one; returns notes.

    If the other one is missing, the tensor takes its place.

    Raises:
        Problem: (mismatch) one does not.
    """
    notes = []
    for name, path in ties_of(package):
        original = table.pairs(rows, [path])[0].theirs
        if name not in found or name == original:
            continue
        if original not in found:
            found[original] = replace(found.pop(name), name=original)
            notes.append(f"{name} stands for {original} too, to which it is tied")
            continue
        copy, model = found.pop(name), found[original]
        if (copy.shape, copy.dtype) != (model.shape, model.dtype) or not np.array_equal(
            raw(copy.read()), raw(model.read())
        ):
            raise Problem(
                f"{name} is not the same as {original}",
                where=str(where),
                why=f"the model ties them; {name} is {copy.shape}, {original} is {model.shape}",
                fix="a model with an untied head is not supported",
                exit_code=MISMATCH,
            )
        notes.append(f"{name} repeats {original}, to which it is tied")
    return notes
