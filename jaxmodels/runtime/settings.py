"""A run's settings as JSON, TOML and dataclasses: read strictly, merged, compared."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxmodels.architecture import ConfigView
from jaxmodels.errors import USAGE, Problem

T = TypeVar("T")

RENAMED = {"least_lr": "min_lr"}
"""Former name of a field of `Optim` → its name; files and flags may still use the old one."""


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a .json or .toml file.

    Raises:
        Problem: (usage) it is neither, or its top level is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("the top level is not an object")
        _upgrade(value)
    except (ValueError, RecursionError) as error:
        raise Problem(
            "a settings file cannot be read",
            where=str(path),
            why=str(error),
            fix="write TOML into a .toml file, JSON into any other; `--print-config` shows one",
            exit_code=USAGE,
        ) from error
    return value


def _upgrade(value: dict[str, Any]) -> None:
    """Converts what earlier versions wrote: `remat` was a bool, `min_lr` had another name."""
    recipe = value.get("recipe")
    if not isinstance(recipe, dict):
        return
    if isinstance(recipe.get("remat"), bool):
        recipe["remat"] = "full" if recipe["remat"] else "none"
    if isinstance(optim := recipe.get("optim"), dict):
        for old, new in RENAMED.items():
            if old in optim:
                optim.setdefault(new, optim.pop(old))


def merge(default: T, changes: dict[str, Any], where: str) -> T:
    """The dataclass `default` with the values in `changes`, nested like the dataclass.

    Raises:
        Problem: (usage) a field does not exist (near names are suggested), or has a value of
            another type or out of range.
    """
    hints = get_type_hints(type(default))
    new = {}
    for name, value in changes.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=2)
            raise Problem(
                f"unknown field: {name!r}",
                where=where,
                fix=f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(hints)}",
                exit_code=USAGE,
            )
        old = getattr(default, name)
        if dataclasses.is_dataclass(old) and isinstance(value, dict):
            new[name] = merge(old, value, f"{where}: {name}")
        else:
            new[name] = coerce(value, hints[name], name, where)
    try:
        return dataclasses.replace(default, **new)  # type: ignore[type-var]
    except Problem as problem:
        problem.where = problem.where or where
        raise


def follow(model: T, default: T, given: Collection[str]) -> T:
    """The Config with the fields that follow others (`ConfigView.FOLLOWS`) and are not given.

    Args:
        model: the Config as given.
        default: the one that it changes.
        given: names of the fields that were given.
    """
    changed: Any = model
    for name, (leader, times) in ConfigView(model).FOLLOWS.items():
        width = times * getattr(model, leader)
        followed = getattr(default, name) == times * getattr(default, leader)
        if followed and name not in given and getattr(model, name) != width:
            changed = dataclasses.replace(changed, **{name: width})
    result: T = changed
    return result


def coerce(value: Any, hint: Any, name: str, where: str) -> Any:
    """The value in the type of a field; JSON's lists become tuples, integers floats.

    Raises:
        Problem: (usage) it has another type, or is not one of the field's choices.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            hints = get_args(option)
            if hints[-1] is ...:
                hints = (hints[0],) * len(value)
            if len(hints) == len(value):
                pairs = zip(value, hints, strict=True)
                return tuple(coerce(item, one, name, where) for item, one in pairs)
        if option is float and type(value) in (int, float):
            return float(value)
        if isinstance(option, type) and type(value) is option:
            return value
    raise Problem(
        f"field {name!r} cannot be {value!r}",
        where=where,
        why=f"its type is {str(hint).replace('typing.', '') if get_args(hint) else hint.__name__}",
        exit_code=USAGE,
    )


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted field → (old value, new value), where two settings (as of `asdict`) differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in [*old, *(name for name in new if name not in old)]:
            found |= differences(
                old.get(name), new.get(name), f"{prefix}.{name}" if prefix else name
            )
        return found
    return {} if _as_lists(old) == _as_lists(new) else {prefix: (old, new)}


def _as_lists(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_as_lists(item) for item in value] if isinstance(value, tuple | list) else value
