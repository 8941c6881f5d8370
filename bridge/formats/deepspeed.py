"""Folders of DeepSpeed: `latest`, and `global_stepN` with the states of the model and optimiser.

Source: DeepSpeed's `runtime/engine.py` (names of files) and `utils/zero_to_fp32.py`. Where ZeRO-3
cut the weights, each rank's file has empty tensors in their place.
"""

import re
from pathlib import Path
from typing import NamedTuple

from bridge.core.tensors import is_float
from bridge.formats import torch_files
from bridge.formats.format import Format
from bridge.formats.raw import RawCheckpoint, checked, take_tokenizer
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.reading import read_limited

LATEST = "latest"
_STEP = re.compile(r"global_step(\d{1,18})")
_WHOLE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_CUT = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_LAYER = re.compile(r"layer_\d+-model_\d+-model_states\.pt")
_OPTIMIZER = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt")
_JOIN = "in the folder that has zero_to_fp32.py: python zero_to_fp32.py . OUT, and give OUT"


class _Step(NamedTuple):
    """The names of the files in a folder of one step."""

    complete: list[str]
    cut: list[str]
    layers: list[str]
    optimizer: list[str]


def is_folder(folder: Path) -> bool:
    """Whether a folder is DeepSpeed's, or one of its steps."""
    return _is_step(folder) or bool(_steps(folder))


def open_folder(folder: Path) -> RawCheckpoint:
    """The model of a step, or of the one that `latest` names, else the newest.

    Raises:
        Problem: (corrupt) `latest` names none; (mismatch) the weights lie in pieces.
    """
    notes: list[str] = []
    step = folder if _is_step(folder) else _chosen(folder, notes)
    held = _files(step)
    if len(held.complete) != 1 or held.layers:
        raise _in_pieces(step, held)
    contents = torch_files.open_file(step / held.complete[0])
    contents.path, contents.tensors = folder, checked(folder, contents.tensors)
    contents.notes[:0] = notes
    narrow = any(t.dtype.itemsize == 2 for t in contents.tensors.values() if is_float(t.dtype))
    if held.optimizer and narrow:
        contents.notes.append(
            "these are the weights of 16 bits that it computed with; DeepSpeed keeps them in "
            f"float32 with its optimiser, which is not read ({_JOIN})"
        )
    take_tokenizer(contents, folder)
    return contents


def _chosen(folder: Path, notes: list[str]) -> Path:
    steps = _steps(folder)
    name = steps[-1].name
    if (folder / LATEST).exists():
        try:
            name = read_limited(folder / LATEST, 1000).decode("utf-8").strip()
        except (OSError, ValueError) as error:
            raise _no_latest(folder, f"it cannot be read ({error})") from None
        if name not in {step.name for step in steps}:
            raise _no_latest(folder, f"it names {name[:80]!r}, which is not among the steps here")
    notes.append(f"using {name}, one of {len(steps)}")
    return folder / name


def _no_latest(folder: Path, why: str) -> Problem:
    names = ", ".join(step.name for step in _steps(folder))
    return Problem(
        f"{LATEST} does not name a step",
        where=str(folder / LATEST),
        why=why,
        fix=f"give one of the steps: {names}",
        exit_code=CORRUPT,
    )


def _steps(folder: Path) -> list[Path]:
    """The steps in a folder, sorted by number; `latest` may name a step that has none."""
    found = [path for path in folder.iterdir() if path.is_dir() and _is_step(path)]
    if not (folder / LATEST).is_file():
        found = [path for path in found if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_number(path), path.name))


def _number(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def _is_step(folder: Path) -> bool:
    try:
        held = _files(folder)
    except OSError:  # a folder that cannot be read is not recognised
        return False
    return bool(held.complete or held.cut or held.layers)


def _files(step: Path) -> _Step:
    names = sorted(path.name for path in step.iterdir())
    kinds = (_WHOLE, _CUT, _LAYER, _OPTIMIZER)
    return _Step(*([name for name in names if kind.fullmatch(name)] for kind in kinds))


def _in_pieces(step: Path, held: _Step) -> Problem:
    if held.layers or len(held.complete) > 1:
        how = "each of several ranks, or layers, has a file of its own"
        fix = "save the whole model on one rank, with save_pretrained or torch.save"
    else:
        how, fix = "ZeRO stage 3 cut them, and each rank keeps a piece of each", _JOIN
    files = held.layers or held.complete or held.cut
    return Problem(
        "DeepSpeed saved the weights in pieces, which cannot be joined here",
        where=str(step),
        why=f"{how}: {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}",
        fix=fix,
        exit_code=MISMATCH,
    )


FORMAT = Format("torch", "DeepSpeed's folders", is_folder=is_folder, open_folder=open_folder)
