"""bwetaf's folders: `good_stuff.pkl` (msgpack, not a pickle) and the files beside it.

Source: the package BwETAF 0.5.1, `model/model.py` (`ModelManager`) and `main.py`.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge import sandbox
from bridge.core import table
from bridge.core.moments import Moments, count_of
from bridge.core.tensors import Tensor
from bridge.formats.format import Format, Output
from bridge.formats.raw import RawCheckpoint, checked, origin_of, upstream_of, with_upstream
from bridge.legacy.msgpack_reader import Tree, leaves, looks_like_tree
from bridge.legacy.msgpack_writer import write_msgpack
from bridge.storage import unsupported
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

WEIGHTS_FILE, CONFIG, OPTIMIZER = (
    "good_stuff.pkl",
    "understanding_good_stuff.json",
    "make_stuff_better.pkl",
)
TOP = "params."

# The package's key → our field; `positions` and `init_range` have other forms.
FIELDS = {
    "num_heads": "heads",
    "attention_dim": "dim",
    "vocab_size": "vocab",
    "num_blocks": "layers",
    "ff_dim": "hidden",
    "dropout_rate": "dropout",
    "max_len": "context",
    "emb_scaling_factor": "embed_scale",
    "res_scale": "residual_scale",
}
# The package's defaults for missing keys, and the content of a new file.
_USUAL = {"use_rope": False, "emb_scaling_factor": 1.0, "res_scale": 1.0, "emb_init_range": None}
_FRESH = {"possible_opt_path": "", "emb_splt": 256, "attn_chunks": 1}
_KEYS = (
    "num_heads attention_dim vocab_size num_blocks ff_dim dropout_rate possible_opt_path max_len "
    "emb_splt attn_chunks use_rope emb_scaling_factor res_scale emb_init_range"
).split()


def is_folder(folder: Path) -> bool:
    """Whether a folder is a saved bwetaf."""
    return (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG).is_file()


def is_file(path: Path) -> bool:
    """Whether a file is a tree of `flax.serialization`."""
    return looks_like_tree(path)


def open_file(path: Path) -> RawCheckpoint:
    """The parameters alone; shapes or `--set` give the sizes.

    Raises:
        Problem: (corrupt) damaged, or a tree of another model.
    """
    tensors = _tensors(path, sandbox.read("msgpack", path))
    if not any(table.path_of(jaxmodels.arch("bwetaf").UPSTREAM, name) for name in tensors):
        raise unsupported.problem(path, unsupported.FLAX)
    return RawCheckpoint(path, "bwetaf", tensors)


def open_folder(folder: Path) -> RawCheckpoint:
    """A saved bwetaf, with the tokeniser in the folder if there is one.

    Raises:
        Problem: (corrupt) a file is damaged.
    """
    keys = parse_json(folder / CONFIG)
    path = folder / WEIGHTS_FILE
    tensors = _tensors(path, sandbox.read("msgpack", path))
    return RawCheckpoint(
        folder,
        "bwetaf",
        checked(folder, tensors),
        arch="bwetaf",
        fields=_fields(keys, folder / CONFIG),
        origin=with_upstream(origin_of(folder), "bwetaf", keys),
        table="UPSTREAM",
        moments=partial(_moments, folder / OPTIMIZER),
    )


def check_config(config: Any, where: Path) -> None:
    """Checks that the authors' package can compute a model; `where` names it in errors.

    Raises:
        Problem: (mismatch) it cannot.
    """
    if config.rotate_qk:
        raise Problem(
            "the authors' package cannot compute this model",
            where=str(where),
            why="rotate_qk is on; its published code never rotates queries and keys",
            fix="use --to safetensors",
            exit_code=MISMATCH,
        )


def write(output: Output) -> None:
    """Writes the folder as the package's `save_model` does, one tensor at a time."""
    folder = output.folder
    tree = {"params": _nest(output.tensors)}
    output.digests |= write_msgpack(folder / WEIGHTS_FILE, tree, output.progress)
    config = written_config(output.config, output.origin)
    # As the package writes it: no newline at the end.
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    if output.moments is not None:
        write_msgpack(folder / OPTIMIZER, _optax_tree(output.moments))


def written_config(config: Any, origin: dict[str, Any]) -> dict[str, Any]:
    """understanding_good_stuff.json: an earlier one, changed where the Config differs now."""
    was = upstream_of(origin, "bwetaf")
    now: dict[str, Any] = {key: getattr(config, field) for key, field in FIELDS.items()}
    now |= {"use_rope": config.positions == "rotate", "emb_init_range": config.init_range}
    if not was:
        return {key: {**_FRESH, **now}[key] for key in _KEYS}
    before = _fields(was, Path(CONFIG))
    changed = {
        key: value
        for key, value in now.items()
        if _fields({**was, key: value}, Path(CONFIG)) != before
    }
    return {**was, **changed}


def _fields(keys: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of bwetaf's Config in the package's JSON."""
    keys = {**_USUAL, **keys}
    fields = {field: keys[key] for key, field in FIELDS.items() if key in keys}
    if isinstance(fields.get("heads"), list):
        fields["heads"] = tuple(fields["heads"])
    fields["positions"] = "rotate" if keys["use_rope"] else "sinusoidal"
    deviation, dim = keys["emb_init_range"], keys.get("attention_dim")
    if deviation is None and isinstance(dim, int) and dim > 0:
        deviation = dim**-0.5
    if deviation is not None:
        fields["init_range"] = deviation
    fields["rotate_qk"] = False
    if not isinstance(keys["use_rope"], bool):
        raise Problem(
            f"use_rope cannot be {str(keys['use_rope'])[:80]}", where=str(where), exit_code=CORRUPT
        )
    return fields


def _tensors(path: Path, tree: Tree) -> dict[str, Tensor]:
    """The arrays by name, without flax's `params` at the top."""
    found = leaves(tree)
    strangers = [name for name, leaf in found.items() if not isinstance(leaf, Tensor)]
    if strangers or not found:
        raise Problem(
            "the file is not a tree of arrays",
            where=str(path),
            why=f"no array: {', '.join(strangers[:10])}" if strangers else "it is empty",
            fix="give the file with the parameters",
            exit_code=CORRUPT,
        )
    names = {name: name.removeprefix(TOP) for name in found}
    return {names[old]: replace(leaf, name=names[old]) for old, leaf in found.items()}


def _nest(tensors: dict[str, Tensor]) -> Tree:
    """The tree, with sorted keys, as in dicts that JAX returns."""
    tree: Tree = {}
    for name in sorted(tensors, key=lambda name: name.split(".")):
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensors[name]
    return tree


def _moments(path: Path) -> Moments | None:
    """AdamW's state, at any position in optax's chain."""
    if not path.is_file():
        return None
    node = _adam(sandbox.read("msgpack", path))
    if node is None:
        raise Problem(
            "the optimiser is not AdamW",
            where=str(path),
            why="no part of it has count, mu and nu",
            fix="convert without --optimizer",
            exit_code=MISMATCH,
        )
    count = count_of(node["count"], str(path))
    return Moments(count, _tensors(path, node["mu"]), _tensors(path, node["nu"]))


def _adam(node: Any) -> Tree | None:
    if not isinstance(node, dict):
        return None
    if node.keys() >= {"count", "mu", "nu"}:
        return node if all(isinstance(node[key], dict) for key in ("mu", "nu")) else None
    return next((found for child in node.values() if (found := _adam(child))), None)


def _optax_tree(moments: Moments) -> Tree:
    """The state of `optax.adamw` with a schedule: moments, empty for the decay, the schedule."""
    count = np.asarray(moments.count, np.int32)
    steps = Tensor("count", (), count.dtype, lambda: count)
    mu, nu = ({"params": _nest(held)} for held in (moments.mu, moments.nu))
    return {"0": {"count": steps, "mu": mu, "nu": nu}, "1": {}, "2": {"count": steps}}


FORMAT = Format(
    "bwetaf",
    "a bwetaf folder",
    is_folder=is_folder,
    open_folder=open_folder,
    endings=(".pkl",),
    write=write,
    arch="bwetaf",
    file=lambda origin: WEIGHTS_FILE,
    check=check_config,
)
# Tried after all other files, since msgpack has no magic number.
FILE = Format("bwetaf", is_file=is_file, open_file=open_file, endings=(".pkl",))
