"""Folders of transformers, whose `config.json` describes the model.

Supported classes are those that twins declare (`bridge.core.transformers_class`). Weights are
safetensors or torch files (`pytorch_model.bin`, or one torch file of another name), in one file or
in shards; a Trainer's folder also has its optimiser. The `config.json` applies to a single file
beside it as well.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bridge.core.table import listing
from bridge.core.transformers_class import TransformersClass, class_named
from bridge.core.twins import transformers_classes
from bridge.formats import model_files
from bridge.formats.format import Format
from bridge.formats.raw import (
    RawCheckpoint,
    describe,
    is_own,
    origin_of,
    take_tokenizer,
    with_upstream,
)
from bridge.formats.transformers_weights import open_weights
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import MISMATCH, Problem

CONFIG, ADAPTER = "config.json", "adapter_config.json"
_QUANTISED = re.compile(
    r".*\.(scales|qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state.*|weight_scale(_inv)?)"
)


class Kind(NamedTuple):
    """A supported model_type of transformers."""

    arch: str
    type: str
    cls: TransformersClass


def kinds() -> dict[str, Kind]:
    """model_type → its `Kind`, of all registered architectures; the first one wins."""
    known: dict[str, Kind] = {}
    for arch, cls in transformers_classes():
        for name in cls.types:
            known.setdefault(name, Kind(arch, name, cls))
    return known


def config_in(folder: Path) -> dict[str, Any] | None:
    """The `config.json` of a folder; None if there is none, or it is our own.

    Raises:
        Problem: (corrupt) it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        return None
    config = parse_json(folder / CONFIG)
    return None if is_own(config) else config


def is_folder(folder: Path) -> bool:
    """Whether a folder has a config, not our own, that names a model_type or class."""
    return _type_in(folder) is not None


def format_in(folder: Path) -> str:
    """The format of a folder, by the class that its config names."""
    kind = kinds().get(_type_in(folder) or "")
    return kind.cls.format if kind else "transformers"


def open_folder(folder: Path) -> RawCheckpoint:
    """A folder whose config names a model_type or class.

    Raises:
        Problem: (corrupt) it is damaged, or has no weights; (mismatch) its type is not supported,
            or its config has settings that our model does not support.
    """
    _check(config_in(folder) or {}, folder)
    return open_weights(folder)


def with_config(contents: RawCheckpoint, folder: Path) -> RawCheckpoint:
    """The contents as the config in their file, or else `config.json` in the folder, describes
    them.

    Unchanged if there is none, or if the weights already determine what they are.

    Raises:
        Problem: as `open_folder`.
    """
    if contents.fields:
        return contents
    if contents.config is None and not (folder / CONFIG).is_file():
        # Files with such names were written by transformers.
        for kind in _marked(contents):
            implied = kind.cls.types[kind.type].implies
            usual = {name: value for name, value in implied.items() if name in kind.cls.own}
            return replace(contents, usual=usual | contents.usual)
        return contents
    config = config_in(folder) if contents.config is None else contents.config
    if config is None:
        if contents.arch is None:
            describe(contents, folder)
        return contents
    name = _named_type(config)
    found = kinds().get(name) if name else None
    if name is None and not contents.arch:
        found = next(_marked(contents), None)
        name = found and found.type
    if name is None or (contents.arch and contents.arch != (found and found.arch)):
        return contents
    _check(config, folder)
    if held := [name for name in contents.tensors if _QUANTISED.fullmatch(name)]:
        raise _quantised(folder, f"it holds:\n{listing(held)}")
    assert found is not None  # `_check` refuses others
    result = _described(contents, found, config, folder)
    if contents.config is not None and (other := config_in(folder)) is not None:
        _refuse_difference(result, found, other, folder)
    return result


def _refuse_difference(
    contents: RawCheckpoint, kind: Kind, config: Mapping[str, Any], folder: Path
) -> None:
    """Refuses a file whose own config is not that of the config.json beside it."""
    where = folder / CONFIG
    beside = kind.cls.read({**config, "model_type": kind.type}, where)
    differing = [
        f"{name} = {contents.fields[name]} and {beside[name]}"
        for name in contents.fields.keys() & beside.keys()
        if contents.fields[name] != beside[name] and name != "dropout"
    ]
    if differing or _named_type(config) not in (None, kind.type):
        raise Problem(
            "the config in the file is not the config.json beside it",
            where=str(where),
            why=", ".join(sorted(differing)) or f"that is of the type {_named_type(config)!r}",
            fix="move the one that is not the model's away, and try again",
            exit_code=MISMATCH,
        )


def _described(
    contents: RawCheckpoint, kind: Kind, config: Mapping[str, Any], folder: Path
) -> RawCheckpoint:
    """The contents as a config.json of a class of transformers describes them."""
    cls, where = kind.cls, contents.path if contents.config else folder / CONFIG
    named = not all(config.get(key) is None for key in ("model_type", "architectures"))
    typed = {**config, "model_type": kind.type}
    other = None if named else cls.other(config, where)
    fields, notes = other or (cls.read(typed, where), [])
    notes += cls.check(typed, contents.tensors, where)
    if other is None:
        notes += cls.notes(typed, where, named)
    name = class_named(config)
    if name and not _is_class(name):
        notes.append(f"{name[:80]!r}, the class that config.json names, is read as {kind.type}")
    result = replace(
        contents,
        format=cls.format,
        arch=kind.arch,
        fields=fields,
        # transformers' defaults apply only if transformers wrote the config.
        usual=cls.defaults(fields) if named else {},
        notes=[*contents.notes, *notes],
        origin=with_upstream({**origin_of(folder), **contents.origin}, cls.format, dict(config)),
        of_text=cls.of_text,
    )
    if folder == contents.path:
        result.moments = partial(model_files.read_moments, folder)
    if cls.of_text:
        take_tokenizer(result, folder)
    return result


def _type_in(folder: Path) -> str | None:
    try:
        return _named_type(config_in(folder) or {})
    except Problem:
        return None


def _marked(contents: RawCheckpoint) -> Iterator[Kind]:
    """Kinds that the names of tensors indicate, the most specific first. Only the ends of names are
    compared, since wrappers may have put a prefix before them."""
    for kind in reversed(kinds().values()):
        mark = kind.cls.types[kind.type].mark
        if mark and any(name.endswith(mark) for name in contents.tensors):
            yield kind


def _named_type(config: Mapping[str, Any]) -> str | None:
    """The model_type that a config names, also by a class; of an unknown class, its name."""
    if isinstance(kind := config.get("model_type"), str):
        return kind
    if (name := class_named(config)) is None:
        return None
    stems = [(kind.cls.types[kind.type].stem, kind.type) for kind in kinds().values()]
    fits = [(len(stem), kind) for stem, kind in stems if name.startswith(stem)]
    return max(fits)[1] if fits else name


def _is_class(name: str) -> bool:
    """Whether this is the name of a class of transformers that is read."""
    return any(cls.is_class(name) for _, cls in transformers_classes())


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses configs of unknown types, of custom code, and of quantised models; and adapters."""
    name, code = class_named(config), config.get("auto_map")
    kind, known = _named_type(config), kinds()
    if kind is not None and kind not in known:
        raise Problem(
            f"models of the type {kind[:80]!r} are not supported",
            where=str(folder / CONFIG),
            why=f"of transformers' models {', '.join(known)} are read",
            fix="even if its tensors have the same names, it computes something else",
            exit_code=MISMATCH,
        )
    of_its_own = isinstance(code, dict) and any(key.startswith("AutoModel") for key in code)
    if name and of_its_own and not _is_class(name):
        raise Problem(
            f"the model needs its own code, the class {name[:80]!r}",
            where=str(folder / CONFIG),
            why="that code is not run, and what it computes is not known",
            fix="if it computes what transformers' class does, name that under architectures",
            exit_code=MISMATCH,
        )
    for key in ("quantization_config", "quantization"):
        if value := config.get(key):
            method = value.get("quant_method", value) if isinstance(value, dict) else value
            raise _quantised(folder, f"config.json says {key}: {str(method)[:80]}")
    if (folder / ADAPTER).is_file():
        raise Problem(
            "the folder holds an adapter (LoRA or the like) for another model",
            where=str(folder / ADAPTER),
            why="the model's outputs depend on both",
            fix="merge them with peft's merge_and_unload(), and save the result",
            exit_code=MISMATCH,
        )


def _quantised(folder: Path, why: str) -> Problem:
    return Problem(
        "the model is quantised, which is not supported",
        where=str(folder),
        why=why,
        fix="use a checkpoint that is not quantised (float32, bfloat16 or float16)",
        exit_code=MISMATCH,
    )


FORMAT = Format(
    "transformers",
    is_folder=is_folder,
    open_folder=open_folder,
    interpret=with_config,
    name_in=format_in,
)


def targets() -> list[Format]:
    """A format to write for each class of transformers that a twin declares."""
    return [
        replace(
            model_files.FORMAT,
            name=cls.format,
            what=f"a {'/'.join(cls.types)} folder of transformers",
            arch=arch,
            is_file=None,
            open_file=None,
            is_folder=None,
            open_folder=None,
            endings=(),
        )
        for arch, cls in transformers_classes()
    ]
