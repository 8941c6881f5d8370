"""Orbax checkpoints: a CheckpointManager's folder, one of its steps, or an item of a step.

A step is a folder whose name ends in its number: `120`, `ckpt_00000120`. It is a tree itself, or
has a tree for each item: `default`, `params`, `opt_state`. An unfinished step has
`.orbax-checkpoint-tmp` or `.partial_save` in its name, or is marked in its metadata, or lacks the
`commit_success.txt` that its neighbours have.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from bridge.core.table import listing
from bridge.core.tensors import Tensor
from bridge.formats import runs
from bridge.formats.format import Format, Output
from bridge.formats.orbax_trees import model_in, moments_in
from bridge.formats.raw import RawCheckpoint, checked, describe
from bridge.storage import orbax
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.files import write_json

CHECKPOINT, COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
UNFINISHED = re.compile(r"\.orbax-checkpoint-tmp|\.partial_save")
_STEP = re.compile(r"(?:.*[_.-])?(?P<number>\d{1,18})")


def is_folder(folder: Path) -> bool:
    """Whether a folder is a tree, a step, or holds steps, finished or not."""
    return _is_step(folder) or bool(_steps(folder))


def open_folder(folder: Path) -> RawCheckpoint:
    """The model of a tree, of a step, or of the newest finished step in a folder.

    Raises:
        Problem: (corrupt) unfinished or damaged; (mismatch) it holds several models, or none.
    """
    if orbax.is_tree(folder) or not _steps(folder):
        return _open(folder, folder, [])
    step, notes = _newest(folder)
    if not runs.is_step(step):
        return _open(folder, step, notes)
    contents = runs.open_step(step)
    contents.notes[:0] = notes
    return contents


def _open(folder: Path, step: Path, notes: list[str]) -> RawCheckpoint:
    if why := _unfinished(step):
        raise _never_finished(step, why)
    tensors, more = _trees(step)
    prefix, model, left = model_in(tensors, step)
    contents = RawCheckpoint(folder, "orbax", checked(folder, model), notes=[*notes, *more, *left])
    contents.moments = partial(moments_in, tensors, prefix, step)
    if number := _STEP.fullmatch(step.name):
        contents.origin = {"step": int(number["number"])}
    describe(contents, _beside(folder, step))
    return contents


def _trees(step: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All arrays of a step, those of items under the item's name; and notes."""
    if orbax.is_tree(step):
        return orbax.read_tree(step)
    tensors: dict[str, Tensor] = {}
    notes = []
    for item in sorted(path for path in step.iterdir() if path.is_dir()):
        if not orbax.is_tree(item):
            continue
        held, more = orbax.read_tree(item)
        names = {name: f"{item.name}.{name}" for name in held}
        tensors |= {names[name]: replace(held[name], name=names[name]) for name in held}
        notes += more
    if not tensors:
        raise Problem(
            "the Orbax checkpoint holds no arrays",
            where=str(step),
            why=f"no {orbax.METADATA} in it lists any",
            fix="take another checkpoint, or fetch it again",
            exit_code=CORRUPT,
        )
    return tensors, notes


def _newest(folder: Path) -> tuple[Path, list[str]]:
    """The finished step with the largest number, and notes on the others."""
    steps = {path: _unfinished(path) for path in _steps(folder)}
    finished = [path for path, why in steps.items() if not why]
    if not finished:
        raise _never_finished(*steps.popitem())
    if len({path.name.rstrip("0123456789") for path in finished}) > 1:
        raise Problem(
            "the folder holds steps of several trainings",
            where=str(folder),
            why=listing([path.name for path in finished]),
            fix="give one of them",
            exit_code=MISMATCH,
        )
    step = finished[-1]
    notes = [f"using step {step.name}, the newest of {len(finished)}"]
    return step, notes + [f"left aside: {path.name}: {why}" for path, why in steps.items() if why]


def _steps(folder: Path) -> list[Path]:
    """The steps in a folder by their numbers, unfinished ones too."""
    found = []
    for path in folder.iterdir():
        match = _STEP.fullmatch(UNFINISHED.split(path.name)[0])
        if match and path.is_dir() and _is_step(path):
            found.append((int(match["number"]), path.name, path))
    return [path for *_, path in sorted(found)]


def _is_step(folder: Path) -> bool:
    """Whether a folder is a tree, holds one for each item, or was going to."""
    try:
        named = UNFINISHED.search(folder.name) or (folder / CHECKPOINT).is_file()
        return bool(named) or orbax.is_tree(folder) or any(map(orbax.is_tree, folder.iterdir()))
    except OSError:  # a folder that cannot be read is not recognised
        return False


def _unfinished(step: Path) -> str:
    """Why a step cannot have been finished; empty when it was."""
    for path in (step, *step.iterdir()):
        if found := UNFINISHED.search(path.name):
            return f"{found[0]} in a name marks it as unfinished"
    metadata = parse_json(step / CHECKPOINT) if (step / CHECKPOINT).is_file() else {}
    if metadata.get("commit_timestamp_nsecs", 0) is None:
        return f"{CHECKPOINT} marks it as unfinished"
    siblings = step.parent.iterdir() if _STEP.fullmatch(step.name) else ()
    items = [path for path in step.iterdir() if path.is_dir() and orbax.is_tree(path)]
    # Items of steps written without a manager may be committed one by one, but the step is not.
    own = items if (step / CHECKPOINT).is_file() else ()
    for parts, one in (((*siblings, *own), step), *((items, item) for item in items)):
        if (one / COMMITTED).is_file() or not any((path / COMMITTED).is_file() for path in parts):
            continue
        return f"it has no {COMMITTED}, unlike its neighbours: it was not finished"
    return ""


def _never_finished(step: Path, why: str) -> Problem:
    return Problem(
        "the Orbax checkpoint was never finished",
        where=str(step),
        why=why,
        fix="take an earlier step, or save it again",
        exit_code=CORRUPT,
    )


def _beside(folder: Path, step: Path) -> Path:
    """The folder whose other files belong to the model: the nearest with a config.json."""
    around = (step.parent,) if _STEP.fullmatch(step.name) else ()
    places = (folder, step, *around)
    return next((place for place in places if (place / "config.json").is_file()), folder)


def write(output: Output) -> None:
    """Writes an Orbax checkpoint of the parameters, and a config.json of ours."""
    tensors = [*output.tensors.values()]
    output.digests |= orbax.write_tree(output.folder, tensors, output.progress)
    write_json(output.folder / "config.json", output.description)


FORMAT = Format(
    "orbax",
    "an Orbax checkpoint (a tree, a step, or the folder of a CheckpointManager)",
    is_folder=is_folder,
    open_folder=open_folder,
    write=write,
    moments=None,
)
