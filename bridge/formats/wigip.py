"""wigip's checkpoints: `step_N.zip`, a zip of gzipped pickles, which are read as data.

Format: `state_and_opt.pkl.gz`, a dict of `step` and optax's `opt_state`; `params/KEY.pkl.gz` for
each key at the top of flax.linen's tree. Blocks are called `CheckpointAttentionBlock_i`, or
`AttentionBlock_i` where they were not rematerialised.
Source: seed 000 (nurric-ai/Wigip_v2_1.7B_ViT), `src/train_and_continue.py`.
"""

import gzip
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bridge import sandbox
from bridge.core.moments import Moments, count_of, required
from bridge.core.tensors import Fingerprint, Tensor, fingerprint
from bridge.formats import wigip_optimizer as optimizer
from bridge.formats.raw import RawCheckpoint, checked, origin_of, upstream_of, with_upstream
from bridge.legacy.array_pickle import tensors_of
from bridge.legacy.pickle_writer import write_array, write_pickle
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.runtime.manifest import MANIFEST

FORMAT = "wigip-zip"
STATE, PARAMS, END = "state_and_opt.pkl.gz", "params/", ".pkl.gz"
REMAT, PLAIN = "CheckpointAttentionBlock", "AttentionBlock"
_FILE = re.compile(r"step_(\d{1,18})\.zip")
_MEMBER = re.compile(r"params/([A-Za-z0-9_-]{1,100})\.pkl\.gz")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_LEVEL = 1  # weights do not compress; higher levels only take longer


def is_file(path: Path) -> bool:
    """Whether a file is a zip of pickled parameters."""
    return any(_MEMBER.fullmatch(name) for name in sandbox.names(path))


def is_folder(folder: Path) -> bool:
    """Whether such zips, named by their steps, lie in a folder."""
    return any(is_file(path) for path in _by_step(folder))


def open_folder(folder: Path) -> RawCheckpoint:
    """The checkpoint of the largest step, with the tokeniser whose file lies in the folder.

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
    """One checkpoint; every byte of it is checked, large arrays are read when they are asked for.

    Raises:
        Problem: (unsafe) it asks to run code, is built to mislead, or unpacks to far more than its
            size; (corrupt) damaged, or not what the seed writes.
    """
    found = sandbox.read("pickles", path, f"{re.escape(STATE)}|{_MEMBER.pattern}")
    state = found["values"].pop(STATE, None)
    tensors: dict[str, Tensor] = {}
    for name, value in found["values"].items():
        key = name.removeprefix(PARAMS).removesuffix(END)
        tensors |= tensors_of(value, key, f"{path}: {name}")
    where = f"{path}: {STATE}"
    if type(state) is not dict or not {"step", "opt_state"} <= state.keys():
        raise Problem(
            "the checkpoint does not say where training stood",
            where=where,
            why="a dict of step and opt_state is missing",
            fix="fetch or save the file again",
            exit_code=CORRUPT,
        )
    blocks = PLAIN if _first_words(tensors) & {REMAT, PLAIN} == {PLAIN} else REMAT
    step = count_of(state["step"], where)
    said, notes = optimizer.said(state["opt_state"], where)
    if (numbered := _FILE.fullmatch(path.name)) and int(numbered[1]) != step:
        notes.append(f"the file is called {path.name}, and holds step {step}")
    notes += [f"left aside: {name}" for name in found["others"][:10]]
    return RawCheckpoint(
        path,
        FORMAT,
        _renamed(tensors, blocks, REMAT),
        arch="wigip",
        origin=with_upstream({"step": step}, FORMAT, {"blocks": blocks, **said}),
        notes=notes,
        table="UPSTREAM",
        moments=lambda: _moments(state["opt_state"], where, blocks),
    )


def file_name(origin: dict[str, Any]) -> str:
    """`step_N.zip` of what is known of a training; N is 0 where nothing is."""
    return f"step_{_step(origin)}.zip"


def check_config(config: Any, where: Path) -> None:
    """Checks that the seed's code can compute a model; `where` names it in errors.

    Raises:
        Problem: (mismatch) it cannot.
    """
    if config.objective != "next_char":
        raise Problem(
            "the authors' code cannot compute what this model does",
            where=str(where),
            why=f"its objective is {config.objective}; the authors' code would read the same "
            "parameters as next_char, and predict nonsense",
            fix="use --to safetensors",
            exit_code=MISMATCH,
        )


def carried(moments: Moments | None, origin: dict[str, Any], where: Path) -> Moments | None:
    """The optimiser's state that goes along: AdamW's moments, or None for the seed's own SGD.

    Raises:
        Problem: (mismatch) it is of an optimiser that the seed's code does not have.
    """
    was = upstream_of(origin, FORMAT).get("optimizer")
    if moments is None:
        plain = was is not None or origin.get("optimizer") == "sgd"
        return None if plain else required(moments, where)
    if not optimizer.has_adam(was):
        raise Problem(
            "the authors' optimiser cannot take AdamW's moments",
            where=str(where),
            why="its code trains by SGD behind clipping, whose state is a count of updates",
            fix="leave --optimizer out, and that state is written; --to safetensors --optimizer "
            "keeps the moments",
            exit_code=MISMATCH,
        )
    return moments


def write_wigip(
    folder: Path,
    tensors: dict[str, Tensor],
    config: Any,
    origin: dict[str, Any],
    moments: Moments | None,
    tell: Callable[[Tensor], None],
) -> dict[str, Fingerprint]:
    """Writes `step_N.zip`, one tensor at a time; the same values give the same bytes.

    Args:
        folder: an existing folder.
        tensors: the seed's name → tensor.
        config: wigip's Config.
        origin: what is known of the training: the step, the names of blocks, the optimiser.
        moments: AdamW's state in the seed's names; None writes the state of the seed's SGD.
        tell: called after each tensor.

    Returns:
        name → {"dtype", "shape", digest}.
    """
    digests: dict[str, Fingerprint] = {}

    def values(tensor: Tensor) -> np.ndarray:
        array = tensor.read()
        if tensor.name in tensors:
            digests[tensor.name] = fingerprint(array)
            tell(tensor)
        return array

    blocks = upstream_of(origin, FORMAT).get("blocks")
    blocks = PLAIN if blocks == PLAIN else REMAT
    step = optimizer.number(_step(origin))
    state = {"step": step, "opt_state": _state(origin, moments, blocks)}
    with zipfile.ZipFile(folder / file_name(origin), "w") as archive:
        archive.writestr(_info(PARAMS), b"")
        _add(archive, STATE, state, lambda tensor: tensor.read())
        for key, value in _tree(tensors, REMAT, blocks).items():
            _add(archive, f"{PARAMS}{key}{END}", value, values)
    return digests


def _add(
    archive: zipfile.ZipFile, name: str, value: Any, values: Callable[[Tensor], np.ndarray]
) -> None:
    """One member, without anything that depends on the time or the machine."""
    with (
        archive.open(_info(name), "w", force_zip64=True) as member,
        gzip.GzipFile("", "wb", _LEVEL, member, mtime=0) as file,
    ):
        write_pickle(file, value, lambda file, tensor: write_array(file, values(tensor)))


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, everywhere
    info.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
    return info


def _tree(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Any]:
    """The nested dict, keys in alphabetical order, in which JAX leaves dicts behind."""
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
    was = upstream_of(origin, FORMAT).get("optimizer")
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
    """A word that is a block's name by its new name, any other as it is."""
    return new + word.removeprefix(old) if re.fullmatch(rf"{old}_\d+", word) else word


def _first_words(tensors: dict[str, Tensor]) -> set[str]:
    return {name.partition(".")[0].rpartition("_")[0] for name in tensors}


def _by_step(folder: Path) -> list[Path]:
    """Files called step_N.zip, by N: the time of a file says when it was copied."""
    found = [(_FILE.fullmatch(path.name), path) for path in folder.iterdir() if path.is_file()]
    numbered = [(int(match[1]), path.name, path) for match, path in found if match]
    return [path for _, _, path in sorted(numbered)]


def _step(origin: dict[str, Any]) -> int:
    step = origin.get("step")
    return step if type(step) is int and 0 <= step <= optimizer.LARGEST else 0
