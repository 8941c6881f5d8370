"""Finds the state dicts in a torch file's content: a state dict, or a dict that a trainer saved.

A trainer keeps its model under some key, often several levels deep, beside its optimiser, settings
and counters. This finds all dicts of tensors; `bridge/formats/wrappers.py` finds out which of them
is the model, and removes the prefixes of wrappers.
"""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge.core.tensors import Tensor
from bridge.formats.wrappers import unread_kind
from bridge.legacy.values import Named, Record
from jaxmodels.errors import CORRUPT, UNSAFE, Problem

MAX_DEPTH = 6
# Keys whose values are never a model, even with tensors in them.
_TRAINING = re.compile(r".*(optim|sched|scaler|rng|random_state|callbacks|loops).*", re.IGNORECASE)
_OBJECT = ("_modules", "_parameters")  # attributes of a torch module that was saved as an object


@dataclass
class Held:
    """The named tensors that were found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Name → tensor; the path to its dict comes first where there are several dicts."""
    strange: dict[str, str] = field(default_factory=dict)
    """Name → the function that the file calls to make an object that is not read as a tensor."""
    notes: list[str] = field(default_factory=list)


def held_in(value: Any, where: Path) -> Held:
    """The named tensors in a torch file's content.

    Raises:
        Problem: (corrupt) there are none; (unsafe) they are in an object whose class would have to
            be run.
    """
    groups: dict[str, dict[str, Any]] = {}
    objects: list[str] = []
    _walk(value, (), groups, objects, set())
    top = groups.get("", {})
    if len(groups) > 1 and not any(_is_tensor(x) and _size(x) > 1 for x in top.values()):
        groups.pop("", None)  # losses, counters, and the settings beside them
    if not any(_is_tensor(item) for group in groups.values() for item in group.values()):
        raise _nothing(value, groups, objects, where)
    held = Held()
    for path, group in groups.items():
        start = f"{path}." if path and len(groups) > 1 else ""
        for name, item in group.items():
            if isinstance(item, Tensor):
                held.tensors[start + name] = replace(item, name=start + name)
            else:
                held.strange[start + name] = item.name
    return held


def _walk(
    node: Any, path: tuple[str, ...], groups: dict[str, Any], objects: list[str], seen: set[int]
) -> None:
    """Collects the dicts that hold tensors, of any kind, by the path to them."""
    if isinstance(node, Record):
        objects += [node.name] if node.keys() >= {*_OBJECT} or not path else []
        return
    if not isinstance(node, dict) or id(node) in seen or len(path) > MAX_DEPTH:
        return
    seen.add(id(node))
    items = {key: item for key, item in node.items() if isinstance(key, str)}
    if any(map(_is_tensor, items.values())):
        found = {k: x for k, x in items.items() if isinstance(x, Tensor | Record | Named)}
        groups[".".join(path)] = {k: x for k, x in found.items() if not _TRAINING.fullmatch(k)}
    for key, item in items.items():
        if not _TRAINING.fullmatch(key):
            _walk(item, (*path, key), groups, objects, seen)


def _is_tensor(item: Any) -> bool:
    """Whether something is a tensor, of a supported kind or not."""
    return isinstance(item, Tensor) or (
        isinstance(item, Named | Record) and unread_kind(item.name) != ""
    )


def _size(item: Any) -> float:
    """The number of elements of a tensor; unknown (infinite) for one of an unsupported kind."""
    return item.size if isinstance(item, Tensor) else math.inf


def _nothing(value: Any, groups: dict[str, Any], objects: list[str], where: Path) -> Problem:
    if objects:
        return Problem(
            "the file holds a pickled object, not a state dict",
            where=str(where),
            why=f"it is of the class {objects[0][:200]}, whose code would have to be run",
            fix="on a machine with that code: torch.save(model.state_dict(), PATH)",
            exit_code=UNSAFE,
        )
    keys = [str(key)[:80] for key in value][:10] if isinstance(value, dict) else []
    return Problem(
        "the torch file holds no named tensors",
        where=str(where),
        why=f"its keys: {', '.join(keys)}" if keys else f"it is a {type(value).__name__}",
        fix="save the state dict of the model: torch.save(model.state_dict(), PATH)",
        exit_code=CORRUPT,
    )
