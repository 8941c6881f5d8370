"""Finds the model in a checkpoint with wrappers' prefixes, or with other things beside it.

A wrapper puts a word into every name below it (`module`, `_orig_mod`). A module that contains the
model puts a path before its names (`model.`, `student.backbone.`) and may contain other things: a
loss, a head, a second model. The model is found by comparing names with its tables.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jaxmodels
from bridge.core.fused_tensors import fused_name
from bridge.core.layouts import tables
from bridge.core.moments import Moments
from bridge.core.table import Rows, listing
from bridge.core.tensors import Tensor
from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import MISMATCH, UNSAFE, USAGE, Problem

CHOICE = "model"
"""What `--set` calls the choice among several models in one checkpoint."""
# Anywhere in a name, since parts of a model can be wrapped too.
WORDS = {
    "module": "torch's DataParallel or DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "torch's FullyShardedDataParallel",
    "_fpw_module": "torch's FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "torch's activation checkpointing",
    "_forward_module": "Lightning",
}
# At the root of a checkpoint, beside a model: losses and metrics.
_BESIDE = re.compile(r"([a-z]+_)*(loss|losses|criterion|metrics?)(_[a-z]+)*\..*|loss_\w+")
# Words in the path of an optimiser's moments, which have the same names as the model.
_MOMENTS = {"mu", "nu", "opt_state", "optimizer", "optimizer_state", "exp_avg", "exp_avg_sq"}
# Of a student and its teacher, the published DINOv2 is the teacher.
_TEACHER = {"dinov2": "teacher"}
# torch's functions that make tensors of unsupported kinds → these kinds.
_KINDS = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch.nn.parameter.UninitializedParameter": "a parameter that was never initialised",
}
_DTYPE = re.compile(r"torch\.(float|complex|q?u?int|bits)[a-z0-9_]*|torch\.(Complex|Q)\w+Storage")


@dataclass(frozen=True)
class _Place:
    """A prefix under which there seems to be a model."""

    arch: str
    prefix: str
    names: int
    """The number of tensors there with a name of the model's."""


def unwrapped(
    contents: RawCheckpoint, arch: str | None, config: Mapping[str, Any]
) -> RawCheckpoint:
    """The contents of one model under its own names, with notes on what was left out.

    Args:
        contents: of the checkpoint.
        arch: the architecture, if the user gave it.
        config: fields that the user gave; its entry CHOICE selects one of several models.

    Raises:
        Problem: (mismatch) there are several models, and none was selected, or a tensor of an
            unsupported kind; (unsafe) a tensor that only code could make.
    """
    contents = without_words(contents)
    names = [*contents.tensors, *contents.strange]
    places = _places(names, arch or contents.arch)
    chosen = _chosen(contents, places, config)
    prefix = chosen.prefix if chosen else ""
    others = [place.prefix for place in places if place.prefix != prefix]
    inside = [
        name
        for name in names
        if name.startswith(prefix)
        and not any(name.startswith(other) for other in others if len(other) > len(prefix))
        and not (chosen and _BESIDE.fullmatch(name.removeprefix(prefix)))
    ]
    _check(contents, chosen, inside)
    return _within(contents, prefix, inside)


def without_words(contents: RawCheckpoint) -> RawCheckpoint:
    """The contents under names without WORDS, with a note on each that was removed."""
    names = [*contents.tensors, *contents.strange]
    new = {name: ".".join(w for w in name.split(".") if w not in WORDS) for name in names}
    found = [word for word in WORDS if any(word in name.split(".") for name in names)]
    if not found or len(set(new.values())) < len(new) or not all(new.values()):
        return contents
    notes = [f"{word!r} in names, left by {WORDS[word]}, was removed" for word in found]
    return _renamed(contents, new, notes)


def _places(names: Iterable[str], arch: str | None) -> list[_Place]:
    """The places with models of the architecture that fits most names."""
    best: list[_Place] = []
    for name, rows, prefixes in _fits(names, arch):
        needed = {theirs for ours, theirs, _ in rows if not ours.endswith("/bias")}
        found = [
            _Place(name, prefix, hits.total())
            for prefix, hits in prefixes.items()
            if _MOMENTS.isdisjoint(prefix.split("."))
            and 2 * len(hits.keys() & needed) >= len(needed)
        ]
        # More names are better, then a shorter prefix.
        if found and _rank(found) > _rank(best):
            best = found
    return best


def _rank(places: list[_Place]) -> tuple[int, int]:
    if not places:
        return 0, 0
    most = max(places, key=lambda place: (place.names, -len(place.prefix)))
    return most.names, -len(most.prefix)


def _fits(
    names: Iterable[str], arch: str | None
) -> Iterator[tuple[str, Rows, dict[str, Counter[str]]]]:
    """For each table: prefix → row, by its name there → the number of names that match it."""
    archs = [arch] if arch and arch in jaxmodels.ARCHS else list(jaxmodels.ARCHS)
    known = [(name, rows) for name in archs for _, rows in tables(jaxmodels.arch(name))]
    index: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, (_, rows) in enumerate(known):
        for theirs in {theirs for _, theirs, _ in rows}:
            index[re.sub(r"\{\w+\}", "0", fused_name(theirs))].append((number, theirs))
    found: list[dict[str, Counter[str]]] = [defaultdict(Counter) for _ in known]
    for name in names:
        words = name.split(".")
        plain = ["0" if word.isdecimal() else word for word in words]
        for at in range(min(len(words), 12)):
            for number, theirs in index.get(".".join(plain[at:]), ()):
                found[number]["".join(f"{word}." for word in words[:at])][theirs] += 1
    for (name, rows), prefixes in zip(known, found, strict=True):
        yield name, rows, prefixes


def _chosen(
    contents: RawCheckpoint, places: list[_Place], config: Mapping[str, Any]
) -> _Place | None:
    """The place that CHOICE selects, or the only one."""
    labels = {place.prefix.rstrip(".") or ".": place for place in places}
    if (choice := config.get(CHOICE)) is not None:
        fits = [p for label, p in labels.items() if choice == label or choice in label.split(".")]
        if len(fits) == 1:
            return fits[0]
        raise Problem(
            f"there is no model {str(choice)[:80]!r} in the checkpoint",
            where=str(contents.path),
            why=f"it holds: {', '.join(labels) or 'none that is known'}",
            fix=f"choose one of them with --set {CHOICE}=NAME",
            exit_code=USAGE,
        )
    if len(places) > 1:
        teacher = _TEACHER.get(places[0].arch)
        fits = [p for label, p in labels.items() if teacher in label.split(".")]
        if len(fits) == 1:
            return fits[0]
        raise Problem(
            f"the checkpoint holds {len(places)} models",
            where=str(contents.path),
            why=listing([f"{label}: {place.names} tensors" for label, place in labels.items()]),
            fix=f"choose one: --set {CHOICE}={next(iter(labels))}",
            exit_code=MISMATCH,
        )
    return places[0] if places else None


def _check(contents: RawCheckpoint, chosen: _Place | None, inside: list[str]) -> None:
    """Refuses a tensor of the model that cannot be read."""
    prefix = chosen.prefix if chosen else ""
    known = [name for name in inside if name in contents.strange]
    if chosen:
        rows = [rows for _, rows in tables(jaxmodels.arch(chosen.arch))]
        index = {re.sub(r"\{\w+\}", "0", fused_name(t)) for each in rows for _, t, _ in each}
        known = [n for n in known if re.sub(r"\b\d+\b", "0", n.removeprefix(prefix)) in index]
    if not known:
        return
    name, made = known[0], contents.strange[known[0]]
    if kind := unread_kind(made):
        raise Problem(
            f"the tensor {name} is {kind}, which is not supported",
            where=str(contents.path),
            why=f"{len(known)} tensors of the model are of that kind",
            fix="save them as plain tensors of float32, bfloat16 or float16",
            exit_code=MISMATCH,
        )
    raise Problem(
        f"the tensor {name} could only be made by running code, and was refused",
        where=str(contents.path),
        why=f"the file calls {made[:200]} to make it",
        fix="use it only if you trust it: save its tensors alone, as safetensors, elsewhere",
        exit_code=UNSAFE,
    )


def unread_kind(made: str) -> str:
    """The unsupported kind of tensor that a function of torch makes; "" if it makes none."""
    return _KINDS.get(made) or (f"of numbers of {made}" if _DTYPE.fullmatch(made) else "")


def _within(contents: RawCheckpoint, prefix: str, inside: list[str]) -> RawCheckpoint:
    """The contents under a prefix, which is removed, with notes on what is left out."""
    notes = []
    if prefix:
        notes.append(f"the model is under {prefix.rstrip('.')!r}")
    kept = set(inside)
    if aside := [name for name in (*contents.tensors, *contents.strange) if name not in kept]:
        notes.append(f"left out, as not part of the model: {_some(aside)}")
    if not notes:
        return contents
    new = {name: name.removeprefix(prefix) for name in inside}
    return _renamed(contents, new, notes)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _renamed(contents: RawCheckpoint, new: Mapping[str, str], notes: list[str]) -> RawCheckpoint:
    """The tensors whose names are keys, under new names."""

    def renamed(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {new[n]: replace(t, name=new[n]) for n, t in held.items() if n in new}

    def moments() -> Moments | None:
        held = contents.moments()
        return held and held.mapped(renamed)

    return replace(
        contents,
        tensors=renamed(contents.tensors),
        strange={new[n]: made for n, made in contents.strange.items() if n in new},
        notes=[*contents.notes, *notes],
        moments=moments,
    )
