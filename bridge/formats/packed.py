"""Packed model directories, with matrices in 2 or 8 bits (`bridge/core/packing.py`).

`config.json` has `"packed": {"version": 1, "rows": {…}}`, where `rows` has the number of rows of
each ternary matrix for which it is not a multiple of four.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.core import packing
from bridge.core.packing import Packed
from bridge.formats.format import Format
from bridge.formats.raw import RawCheckpoint, is_own
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, Problem

NAME, KEY, VERSION = "packed", "packed", 1


def config_entry(packed: Mapping[str, Packed]) -> dict[str, Any]:
    """The entry about packed matrices in config.json, by their names in the files."""
    rows = {
        name: each.shape[0]
        for name, each in packed.items()
        if each.kind == packing.TERNARY and each.shape[0] % packing.A_BYTE
    }
    return {KEY: {"version": VERSION, "rows": rows}}


def interpret(contents: RawCheckpoint, folder: Path) -> RawCheckpoint:
    """The contents with each packed matrix instead of its parts.

    Raises:
        Problem: (corrupt) the version of the packing is unknown, or it is damaged.
    """
    file = folder / "config.json"
    if contents.format != "safetensors" or not file.is_file():
        return contents
    config = parse_json(file)
    if not is_own(config) or KEY not in config:
        return contents
    entry = config[KEY]
    version = entry.get("version") if isinstance(entry, dict) else None
    if type(version) is not int or version != VERSION:
        raise Problem(
            "the version of the model's packing is unknown",
            where=str(file),
            why=f"it is version {str(version)[:20]}, and this program reads version {VERSION}",
            fix="use the version of jaxmodels that wrote it, or a checkpoint that is not packed",
            exit_code=CORRUPT,
        )
    rows = entry.get("rows", {})
    if not isinstance(rows, dict) or not all(type(n) is int and n > 0 for n in rows.values()):
        raise Problem(
            "the rows of packed matrices are not positive numbers",
            where=str(file),
            fix="fetch or convert the model again",
        )
    packed = packing.found(contents.tensors, rows, folder)
    scales = {name + packing.SCALE for name in packed}
    tensors = {
        name: packed[name].unpacked() if name in packed else tensor
        for name, tensor in contents.tensors.items()
        if name not in scales
    }
    return replace(contents, format=NAME, tensors=tensors, packed=packed)


FORMAT = Format(
    NAME,
    interpret=interpret,
    pytorch=True,
    packed=True,
    arch="bitgen",
    tables=("WEIGHTS",),
)
