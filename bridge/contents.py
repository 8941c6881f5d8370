"""What lies at a path, recognised by content: named tensors and what is written beside them.

Nothing here knows of models; `bridge/sources.py` gives the names their meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bridge import orbax
from bridge.safetensors_reader import looks_like_safetensors, parse_json, read_file, read_sharded
from bridge.table import listing
from bridge.tensors import Tensor, digest_of
from bridge.vocabulary import tokenizer_beside
from data_pipelines.tokenizers import Tokenizer
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime import rundir
from jaxmodels.runtime.files import MANIFEST, damage

FORMATS = """a model directory or safetensors file; an Orbax checkpoint folder; a run directory \
of `jaxmodels train`, or one of its checkpoints"""


@dataclass
class Contents:
    """What a path holds, before any table is applied."""

    path: Path
    format: str
    """As in `jaxmodels convert --to`: "safetensors" or "orbax"."""
    tensors: dict[str, Tensor]
    """Their name → tensor."""
    arch: str | None = None
    """Architecture, when the files say it."""
    preset: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """Config fields that the files say, among other keys."""
    tokenizer: Tokenizer | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    """Step and metrics of a training run."""
    notes: list[str] = field(default_factory=list)


def recognise(path: Path) -> Contents:
    """Finds out what lies at a path, without reading the values of tensors.

    Raises:
        Problem: (corrupt) nothing there, nothing known, or damaged.
    """
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    if path.is_file():
        if looks_like_safetensors(path):
            return Contents(path, "safetensors", read_file(path))
        raise _unknown(path, f"its first bytes are {_start(path)}; it has {path.stat().st_size}")
    for is_it, open_it in _FOLDERS:
        if is_it(path):
            return open_it(path)
    raise _unknown(path, f"it holds: {', '.join(_names(path)) or 'nothing'}")


def kind(path: Path) -> str | None:
    """The format that a path seems to have, even when it is damaged."""
    if path.is_file():
        return "safetensors" if looks_like_safetensors(path) else None
    for is_it, open_it in _FOLDERS:
        if is_it(path):
            return "safetensors" if open_it is _safetensors_folder else "orbax"
    return None


def _is_step(folder: Path) -> bool:
    return folder.name.isdecimal() and (folder / "params").is_dir()


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()


def _run(folder: Path) -> Contents:
    notes: list[str] = []
    step = rundir.best_sound(folder / "checkpoints", notes.append)
    if step is None:
        raise Problem(
            "the run has no checkpoint yet",
            where=str(folder / "checkpoints"),
            fix="train until the first checkpoint is saved",
            exit_code=CORRUPT,
        )
    contents = _read_step(step)
    contents.path = folder
    contents.notes = [*notes, f"checkpoint {step.name} was taken", *contents.notes]
    return contents


def _step(folder: Path) -> Contents:
    if broken := damage(folder):
        raise Problem(
            "the checkpoint is damaged",
            where=str(folder),
            why=listing(broken),
            fix="give the run directory: its best sound checkpoint is taken",
            exit_code=CORRUPT,
        )
    return _read_step(folder)


def _read_step(folder: Path) -> Contents:
    run = folder.absolute().parent.parent
    origin = {"step": int(folder.name), "metrics": rundir.metrics(folder)}
    tensors, notes = orbax.read_tree(folder / "params")
    contents = Contents(folder, "orbax", tensors, notes=notes, origin=origin)
    if _is_run(run):
        rundir.refuse_changed(folder)
        _describe(contents, run)
    return contents


def _orbax_folder(folder: Path) -> Contents:
    tensors, notes = orbax.read_tree(folder)
    contents = Contents(folder, "orbax", _checked(folder, tensors), notes=notes)
    _describe(contents, folder)
    return contents


def _safetensors_files(folder: Path) -> tuple[list[Path], list[Path]]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    indices = [path for path in files if path.name.endswith(".index.json")]
    return indices, [path for path in files if looks_like_safetensors(path)]


def _is_safetensors_folder(folder: Path) -> bool:
    return any(_safetensors_files(folder))


def _safetensors_folder(folder: Path) -> Contents:
    indices, files = _safetensors_files(folder)
    if len(indices) == 1:
        tensors = read_sharded(indices[0])
        shards = set(parse_json(indices[0])["weight_map"].values())
        stray = [file.name for file in files if file.name not in shards]
    elif indices or len(files) > 1:
        tensors, stray = {}, [path.name for path in indices or files]
    else:
        tensors, stray = read_file(files[0]), []
    if stray:
        raise Problem(
            "it is not clear which files are the model",
            where=str(folder),
            why=f"these are there besides a whole model: {', '.join(stray)}"
            if tensors
            else f"one index or one file was expected, found {', '.join(stray)}",
            fix="remove what does not belong there, or give one file",
            exit_code=CORRUPT,
        )
    contents = Contents(folder, "safetensors", _checked(folder, tensors))
    _describe(contents, folder)
    return contents


def _describe(contents: Contents, folder: Path) -> None:
    """Takes over what the files beside the tensors say."""
    config = parse_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    # A run directory keeps the model's fields apart from the recipe's.
    contents.fields = config["model"] if isinstance(config.get("model"), dict) else config
    arch, preset = config.get("arch"), config.get("preset")
    contents.arch = arch if isinstance(arch, str) else None
    contents.preset = preset if isinstance(preset, str) else None
    contents.tokenizer = tokenizer_beside(folder)


def _checked(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each compared with its digest in the folder's manifest when it is read."""
    if not (folder / MANIFEST).is_file():
        return tensors
    promised = parse_json(folder / MANIFEST).get("tensors")
    entries = promised if isinstance(promised, dict) else {}
    return {
        name: replace(tensor, read=_reader(folder, tensor, entries[name]["sha256"]))
        if isinstance(entries.get(name), dict) and "sha256" in entries[name]
        else tensor
        for name, tensor in tensors.items()
    }


def _reader(folder: Path, tensor: Tensor, promised: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = tensor.read()
        if digest_of(array) != promised:
            raise Problem(
                f"the tensor {tensor.name!r} is damaged",
                where=str(folder),
                why=f"its sha256 is not the one in {MANIFEST}",
                fix="fetch or convert the model again",
                exit_code=CORRUPT,
            )
        return array

    return read


def _start(path: Path) -> str:
    with path.open("rb") as file:
        return repr(file.read(8))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:10]


def _unknown(path: Path, why: str) -> Problem:
    return Problem(
        "this is no checkpoint that is known here",
        where=str(path),
        why=why,
        fix=f"known are {FORMATS}",
        exit_code=CORRUPT,
    )


_FOLDERS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Contents]], ...] = (
    (_is_run, _run),
    (_is_step, _step),
    (orbax.is_tree, _orbax_folder),
    (_is_safetensors_folder, _safetensors_folder),
)
