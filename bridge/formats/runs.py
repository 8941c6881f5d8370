"""Run directories of `jaxmodels train`, and their checkpoints."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from bridge.core.adapters import Base
from bridge.core.moments import SETTINGS, Moments, count_of
from bridge.core.table import listing
from bridge.core.tensors import Tensor
from bridge.formats.foreign import refuse_strange
from bridge.formats.format import Format
from bridge.formats.raw import RawCheckpoint, describe
from bridge.storage import orbax
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.recipe import Lora
from jaxmodels.runtime.lora import A
from jaxmodels.runtime.manifest import MANIFEST
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.runs.sound import best_sound, checked_finite, hold, skipped_messages, unsound

_LEAF = re.compile(r"opt\.\d{5}\.(?P<place>[\d.]*)(?P<field>count|mu|nu)(?:\.(?P<path>.+))?")


def is_step(folder: Path) -> bool:
    """Whether a folder is one checkpoint of a run."""
    known = (folder / MANIFEST).is_file() or is_run(folder.absolute().parent.parent)
    return known and folder.name.isdecimal() and (folder / "params").is_dir()


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()


def open_run(folder: Path) -> RawCheckpoint:
    """The best sound checkpoint of a run; training that goes on meanwhile does not delete it."""
    passed: dict[int, str] = {}
    while True:
        found = best_sound(folder / "checkpoints", passed)
        if found is None:
            raise Problem(
                "the run has no checkpoint yet",
                where=str(folder / "checkpoints"),
                fix="train until the first checkpoint is saved",
                exit_code=CORRUPT,
            )
        if not (odd := not_finite(found.folder)):
            break
        passed[int(found.folder.name)] = odd
    contents = _read_step(*found)
    contents.path = folder
    taken = f"using checkpoint {found.folder.name}"
    contents.notes = [*skipped_messages(passed), taken, *contents.notes]
    return contents


def open_step(folder: Path) -> RawCheckpoint:
    """One checkpoint of a run."""
    held = hold(folder)
    if broken := unsound(folder):
        raise Problem(
            "the checkpoint is damaged",
            where=str(folder),
            why=listing(broken),
            fix="give the run directory, to use its best sound checkpoint",
            exit_code=CORRUPT,
        )
    return _read_step(folder, held)


def not_finite(folder: Path) -> str:
    """A sentence on parameters with infinities or NaN in a checkpoint; empty if there are none.

    Only checkpoints of earlier versions are read: newer ones were checked before they were saved.
    """
    if checked_finite(folder):
        return ""
    tensors = orbax.read_tree(folder / "params")[0]
    odd = [name for name, tensor in tensors.items() if not np.isfinite(tensor.read()).all()]
    from jaxmodels.runtime.finite import not_finite_message

    return not_finite_message(odd) if odd else ""


def _read_step(folder: Path, held: IO[bytes] | None) -> RawCheckpoint:
    run = folder.absolute().parent.parent
    origin = {"step": int(folder.name), "metrics": rundir.metrics(folder)}
    tensors, notes = orbax.read_tree(folder / "params", held)
    contents = RawCheckpoint(folder, "orbax", tensors, notes=notes, origin=origin)
    if any(name.endswith(A) for name in tensors):
        contents.base = Base(run / rundir.BASE, _scale(run))
    else:
        contents.moments = partial(_moments, folder, run, tensors)
    contents.state = _state(folder)
    if orbax.is_tree(folder / "ema"):  # without the frozen parameters, which are their average
        contents.averaged = tensors | orbax.read_tree(folder / "ema", held)[0]
    if (run / "checkpoints").is_dir():
        refuse_strange(run)
    if is_run(run):
        rundir.refuse_changed(folder)
        describe(contents, run)
        if data := _data(run):
            contents.origin["data"] = data
        optim = _optim(run)
        if optim.get("name") == "sgd" and not optim.get("momentum"):
            contents.origin["optimizer"] = "sgd"  # whose state is the count of steps
    return contents


def _state(folder: Path) -> dict[str, Tensor]:
    """The model's state other than parameters, from a checkpoint's `train` item."""
    if not orbax.is_tree(folder / "train"):
        return {}
    tensors = orbax.read_tree(folder / "train")[0]
    names = {name: name.removeprefix("rest.") for name in tensors if name.startswith("rest.")}
    return {names[old]: replace(tensors[old], name=names[old]) for old in names}


def _moments(folder: Path, run: Path, tensors: dict[str, Tensor]) -> Moments | None:
    """optax's AdamW in a checkpoint's `train` item; the item does not describe its structure.

    Leaves are named by `runtime.stored`: a running number, the place in optax's nested
    tuples, the field, and our path with dots: `00003.1.0.mu.blocks.0.attn.qkv.kernel`. Frozen
    parameters have no moments there; zeros are what they would be.
    """
    if not orbax.is_tree(folder / "train"):
        return None
    held: dict[str, dict[str, Tensor]] = {"count": {}, "mu": {}, "nu": {}}
    for name, tensor in orbax.read_tree(folder / "train")[0].items():
        if found := _LEAF.fullmatch(name):
            held[found["field"]][found["path"] or found["place"]] = tensor
    if not (held["mu"] and held["nu"]):  # none, or another optimiser's
        return None
    count = count_of(next(iter(held["count"].values()), None), str(folder / "train"))
    optim = _optim(run)
    if any(scale == 0 for _, scale in optim.get("lr_scale", ())):
        for moment in ("mu", "nu"):
            held[moment] = {name: _zeros(tensor) for name, tensor in tensors.items()} | held[moment]
    if optim.get("name", "adamw") != "adamw":
        return None
    stated = {"lr": optim.get("peak_lr"), **optim}
    settings = {k: stated[k] for k in SETTINGS if isinstance(stated.get(k), int | float)}
    return Moments(count, held["mu"], held["nu"], settings)


def _data(run: Path) -> str:
    """The data that a run was trained on, if it is a public name; paths are private."""
    recipe = parse_json(run / "config.json").get("recipe")
    data = recipe.get("data") if isinstance(recipe, dict) else None
    return data if isinstance(data, str) and data.isidentifier() else ""


def _scale(run: Path) -> float:
    """The scale of a run's LoRA adapters; 1 if unknown, for a checkpoint without its run."""
    text = _recipe(run).get("lora")
    return Lora.parse(text).scale if isinstance(text, str) and text else 1.0


def _optim(run: Path) -> dict[str, Any]:
    """The optimiser's settings in a run's config.json; empty if there are none."""
    optim = _recipe(run).get("optim")
    return optim if isinstance(optim, dict) else {}


def _recipe(run: Path) -> dict[str, Any]:
    """The recipe in a run's config.json; empty if there is none."""
    recipe = parse_json(run / "config.json").get("recipe") if is_run(run) else None
    return recipe if isinstance(recipe, dict) else {}


def _zeros(like: Tensor) -> Tensor:
    shape = like.shape
    return Tensor(like.name, shape, np.dtype(np.float32), lambda: np.zeros(shape, np.float32))


FORMAT = Format(
    "orbax",
    "a run directory of `jaxmodels train`, or one of its checkpoints",
    is_folder=is_run,
    open_folder=open_run,
)
STEP = Format("orbax", is_folder=is_step, open_folder=open_step)
