"""wigip's checkpoints: `step_N.zip`, a zip of gzipped pickles, which are read as data.

Format: `state_and_opt.pkl.gz`, a dict of `step` and optax's `opt_state`; `params/KEY.pkl.gz` for
each key at the top of flax.linen's tree. Blocks are called `CheckpointAttentionBlock_i`, or
`AttentionBlock_i` where they were not rematerialised. `images.pkl.gz` is ours, which the authors'
code does not look for: what a model with images has besides its shapes, where that is not usual.
Source: nurric-ai/Wigip_v2_1.7B_ViT, `src/train_and_continue.py`.
"""

import gzip
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge import sandbox
from bridge.core.moments import Moments, count_of, required
from bridge.core.tensors import Tensor
from bridge.formats import wigip_optimizer as optimizer
from bridge.formats.format import Format, Output
from bridge.formats.raw import RawCheckpoint, checked, origin_of, upstream_of, with_upstream
from bridge.legacy.array_pickle import tensors_of
from bridge.legacy.pickle_writer import write_array, write_pickle
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.runtime.manifest import MANIFEST

NAME = "wigip-zip"
STATE, PARAMS, END = "state_and_opt.pkl.gz", "params/", ".pkl.gz"
IMAGES, WEIGHT = "images.pkl.gz", "image_weight"
REMAT, PLAIN = "CheckpointAttentionBlock", "AttentionBlock"
_FILE = re.compile(r"step_(\d{1,18})\.zip")
_MEMBER = re.compile(r"params/([A-Za-z0-9_-]{1,100})\.pkl\.gz")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_LEVEL = 1  # weights do not compress; higher levels only take longer


def is_file(path: Path) -> bool:
    """Whether a file is a zip of pickled parameters."""
    return any(_MEMBER.fullmatch(name) for name in sandbox.names(path))


def is_folder(folder: Path) -> bool:
    """Whether a folder holds such zips, named by their steps."""
    return any(is_file(path) for path in _by_step(folder))


def open_folder(folder: Path) -> RawCheckpoint:
    """The checkpoint of the largest step, with the folder's tokeniser if there is one.

    Raises:
        Problem: as `open_file`; older checkpoints are named.
    """
    *older, newest = _by_step(folder)
    try:
        contents = open_file(newest)
    except Problem as problem:
        if older:
            names = ", ".join(path.name for path in older[:-4:-1])
            problem.fix = f"it is the newest of {len(older) + 1}; give an older one: {names}"
        raise
    listed = parse_json(folder / MANIFEST).get("files") if (folder / MANIFEST).is_file() else None
    if isinstance(listed, dict) and newest.name in listed:
        contents.tensors = checked(folder, contents.tensors)
        contents.origin = {**origin_of(folder), **contents.origin}
    contents.path = folder
    if older:
        contents.notes.insert(0, f"using {newest.name}, the newest of {len(older) + 1}")
    return contents


def open_file(path: Path) -> RawCheckpoint:
    """One checkpoint; every byte of it is checked, but large arrays are only read when needed.

    Raises:
        Problem: (unsafe) it asks to run code, is built to mislead, or unpacks to far more than its
            size; (corrupt) it is damaged, or has another structure.
    """
    found = sandbox.read(
        "pickles", path, f"{re.escape(STATE)}|{re.escape(IMAGES)}|{_MEMBER.pattern}"
    )
    state, images = (found["values"].pop(name, None) for name in (STATE, IMAGES))
    tensors: dict[str, Tensor] = {}
    for name, value in found["values"].items():
        key = name.removeprefix(PARAMS).removesuffix(END)
        tensors |= tensors_of(value, key, f"{path}: {name}")
    where = f"{path}: {STATE}"
    if type(state) is not dict or not {"step", "opt_state"} <= state.keys():
        raise Problem(
            "the checkpoint has no training state",
            where=where,
            why="a dict of step and opt_state is missing",
            fix="fetch or save the file again",
            exit_code=CORRUPT,
        )
    blocks = PLAIN if _first_words(tensors) & {REMAT, PLAIN} == {PLAIN} else REMAT
    step = count_of(state["step"], where)
    description, notes = optimizer.describe(state["opt_state"], where)
    if (numbered := _FILE.fullmatch(path.name)) and int(numbered[1]) != step:
        notes.append(f"the file is called {path.name}, and holds step {step}")
    notes += [f"left aside: {name}" for name in found["others"][:10]]
    return RawCheckpoint(
        path,
        NAME,
        _renamed(tensors, blocks, REMAT),
        fields={WEIGHT: images[WEIGHT]} if type(images) is dict and WEIGHT in images else {},
        arch="wigip",
        origin=with_upstream({"step": step}, NAME, {"blocks": blocks, **description}),
        notes=notes,
        table="UPSTREAM",
        moments=lambda: _moments(state["opt_state"], where, blocks),
    )


def file_name(origin: dict[str, Any]) -> str:
    """`step_N.zip`, for the step in an origin; 0 if there is none."""
    return f"step_{_step(origin)}.zip"


def check_config(config: Any, where: Path) -> None:
    """Checks that the authors' code can compute a model; `where` names it in errors.

    Raises:
        Problem: (mismatch) it cannot.
    """
    if config.objective != "next_char":
        raise Problem(
            "the authors' code cannot compute this model",
            where=str(where),
            why=f"its objective is {config.objective}; the authors' code would read the same "
            "parameters as next_char, and predict nonsense",
            fix="use --to safetensors",
            exit_code=MISMATCH,
        )


def carried(moments: Moments | None, origin: dict[str, Any], where: Path) -> Moments | None:
    """The optimiser's state to write: AdamW's moments, or None for the authors' own SGD.

    Raises:
        Problem: (mismatch) it is of an optimiser that the authors' code does not have.
    """
    was = upstream_of(origin, NAME).get("optimizer")
    if moments is None:
        plain = was is not None or origin.get("optimizer") == "sgd"
        return None if plain else required(moments, where)
    if not optimizer.has_adam(was):
        raise Problem(
            "the authors' optimiser cannot take AdamW's moments",
            where=str(where),
            why="their code trains by SGD with clipping, whose state is a count of updates",
            fix="leave --optimizer out to write that state; --to safetensors --optimizer "
            "keeps the moments",
            exit_code=MISMATCH,
        )
    return moments


def write(output: Output) -> None:
    """Writes `step_N.zip`, one tensor at a time; the same values give the same bytes.

    Without `moments` it holds the state of the authors' SGD.
    """
    origin = output.origin
    blocks = upstream_of(origin, NAME).get("blocks")
    blocks = PLAIN if blocks == PLAIN else REMAT
    step = optimizer.number(_step(origin))
    state = {"step": step, "opt_state": _state(origin, output.moments, blocks)}
    with zipfile.ZipFile(output.folder / file_name(origin), "w") as archive:
        archive.writestr(_info(PARAMS), b"")
        _add(archive, STATE, state, output)
        weight = output.config.image_weight
        if weight != type(output.config).image_weight:
            _add(archive, IMAGES, {WEIGHT: weight}, output)
        for key, value in _tree(output.tensors, REMAT, blocks).items():
            _add(archive, f"{PARAMS}{key}{END}", value, output)


def _add(archive: zipfile.ZipFile, name: str, value: Any, output: Output) -> None:
    """Adds a member, without anything that depends on the time or the machine."""
    with (
        archive.open(_info(name), "w", force_zip64=True) as member,
        gzip.GzipFile("", "wb", _LEVEL, member, mtime=0) as file,
    ):
        write_pickle(file, value, lambda file, tensor: write_array(file, output.read(tensor)))


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, everywhere
    info.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
    return info


def _tree(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Any]:
    """The nested dict, with sorted keys, as in dicts that JAX returns."""
    tree: dict[str, Any] = {}
    for name in sorted(tensors, key=lambda name: name.split(".")):
        first, *parents = name.split(".")
        keys = [_word(first, old, new), *parents]
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = tensors[name]
    return tree


def _state(origin: dict[str, Any], moments: Moments | None, blocks: str) -> Any:
    was = upstream_of(origin, NAME).get("optimizer")
    if moments is None:
        return optimizer.written(was, _step(origin), None)
    trees = (_tree(held, REMAT, blocks) for held in (moments.mu, moments.nu))
    return optimizer.written(was, moments.count, tuple(trees))


def _moments(state: Any, where: str, blocks: str) -> Moments | None:
    found = optimizer.moments_of(state, where)
    return found and found.mapped(lambda held: _renamed(held, blocks, REMAT))


def _renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        here = _word(first, old, new) + dot + rest
        named[here] = replace(tensor, name=here)
    return named


def _word(word: str, old: str, new: str) -> str:
    """A block's name renamed; any other word unchanged."""
    return new + word.removeprefix(old) if re.fullmatch(rf"{old}_\d+", word) else word


def _first_words(tensors: dict[str, Tensor]) -> set[str]:
    return {name.partition(".")[0].rpartition("_")[0] for name in tensors}


def _by_step(folder: Path) -> list[Path]:
    """Files called step_N.zip, sorted by N (a file's time may be that of a copy)."""
    found = [(_FILE.fullmatch(path.name), path) for path in folder.iterdir() if path.is_file()]
    numbered = [(int(match[1]), path.name, path) for match, path in found if match]
    return [path for _, _, path in sorted(numbered)]


def _step(origin: dict[str, Any]) -> int:
    step = origin.get("step")
    return step if type(step) is int and 0 <= step <= optimizer.LARGEST else 0


FORMAT = Format(
    NAME,
    "wigip's `step_N.zip`, or a folder of them",
    is_file=is_file,
    open_file=open_file,
    is_folder=is_folder,
    open_folder=open_folder,
    endings=(".zip",),
    write=write,
    arch="wigip",
    file=file_name,
    check=check_config,
    moments=carried,
)
