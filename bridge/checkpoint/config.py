"""The Config of a checkpoint: what its files say, what its shapes tell, what must be assumed.

Fields go by their names here; those of a Config inside of another (the image tower's) by both,
`dinov2.heads`.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from bridge.core import table
from bridge.core.table import Rows, Shape
from bridge.core.tensors import Tensor
from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.runtime.paths import flatten
from jaxmodels.runtime.settings import checked


def values_of(config: Any) -> dict[str, Any]:
    """Field → value of a Config."""
    return flatten(dataclasses.asdict(config), ".")


def types_of(kind: Any) -> dict[str, Any]:
    """Field → type of a class of Configs."""
    result: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        inside = types_of(hint) if dataclasses.is_dataclass(hint) else None
        result |= {name: hint} if inside is None else {f"{name}.{n}": h for n, h in inside.items()}
    return result


def fields_of(
    package: Any,
    contents: RawCheckpoint,
    label: str,
    rows: Rows,
    found: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config fields that the files give or the shapes determine, and those assumed.

    `overrides`, what `--set` gives, helps to determine others.

    What is assumed is what the format takes, else what the table of this name does, else the
    architecture's convention; None where there is none.

    Raises:
        Problem: (mismatch) tensors that tell sizes are missing, or files and shapes disagree.
    """
    names, said = types_of(package.Config), flatten(contents.fields, ".")
    stated = {name: said[name] for name in names if name in said}
    complete = contents.arch is not None and len(stated) == len(names)
    shapes = table.ours_of(rows, {name: tensor.shape for name, tensor in found.items()})
    others = {n: tensor.shape for n, tensor in contents.tensors.items() if n not in found}
    try:
        known, assumed = package.sizes(shapes, others, {**stated, **overrides})
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        if complete:
            return stated, {}
        raise Problem(
            "the sizes of the model cannot be determined",
            where=str(contents.path),
            why=f"a tensor that determines them is missing or misshapen ({error}); it holds:\n"
            + table.listing([str(tensor) for tensor in found.values()]),
            fix="the file is incomplete: fetch or save it again",
            exit_code=MISMATCH,
        ) from error
    for name in sorted(known.keys() & stated.keys()):
        if type(stated[name]) is int and stated[name] != known[name]:
            raise _contradiction(name, stated[name], known[name], contents.path, shapes)
    by_table = package.ASSUMED.get(label, {})
    # A model may hold another (bitgen its tower), whose format takes something for its fields.
    usual = {n: value for n, value in contents.usual.items() if n in names and n not in known}
    by_table = {name: value for name, value in by_table.items() if name in assumed}
    assumed = {**assumed, **by_table, **usual}
    return {**known, **stated}, {k: v for k, v in assumed.items() if k not in stated}


def check_known(
    package: Any, assumed: Mapping[str, Any], values: Mapping[str, Any], where: Path
) -> None:
    """Checks that what must be assumed can be: None stands for what nothing tells.

    Args:
        package: the model's.
        assumed: fields that no file says.
        values: all fields.
        where: the checkpoint, for the message.

    Raises:
        Problem: (mismatch) one has none.
    """
    if unknown := [name for name, value in assumed.items() if value is None]:
        said = ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
        words = get_args(types_of(package.Config)[unknown[0]])
        choices = [word for word in words if isinstance(word, str)]
        raise Problem(
            f"the model's {' and '.join(unknown)} cannot be determined",
            where=str(where),
            why=f"no config and no shape says it, and it changes the outputs\n({said})",
            fix=f"give it: --set {unknown[0]}={' or '.join(choices) or 'NUMBER'}",
            exit_code=MISMATCH,
        )


def overrides_of(package: Any, arch: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `--set` gives.

    Raises:
        Problem: (usage) a name is no field of the architecture's Config.
    """
    names, config = types_of(package.Config), flatten(dict(config), ".")
    for name in config:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=2, cutoff=0.4)
            raise Problem(
                f"{arch} has no config field {name!r}",
                why=f"known: {', '.join(names)}",
                fix=f"did you mean {' or '.join(near)}?" if near else "",
                exit_code=USAGE,
            )
    return config


def _contradiction(
    name: str, stated: Any, known: Any, where: Path, shapes: Mapping[str, Shape]
) -> Problem:
    telling = [f"{path}  {shape}" for path, shape in shapes.items() if known in shape]
    return Problem(
        f"the config says {name} = {stated}, the tensors {known}",
        where=str(where),
        why=f"shapes that say it:\n{table.listing(telling)}" if telling else "",
        fix="config and tensors belong to different models: fetch both again",
        exit_code=MISMATCH,
    )


def make_config(package: Any, values: Mapping[str, Any], exit_code: int, where: Path) -> Any:
    """The Config of these values, their types checked: they come from files.

    Raises:
        Problem: (`exit_code`) a value of another type, or values that make no model.
    """
    hints = types_of(package.Config)
    try:
        return _made(
            package.Config,
            {name: checked(value, hints[name], name, str(where)) for name, value in values.items()},
        )
    except Problem as problem:
        problem.exit_code = exit_code
        # What it says to do is meant for `train`.
        problem.fix = "give what is right with --set NAME=VALUE"
        if exit_code != USAGE:
            problem.fix += ", or fetch the checkpoint again"
        problem.where = problem.where or str(where)
        raise


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    """A Config of this class, Configs inside of it first."""
    given: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            start = f"{name}."
            inside = {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
            given[name] = _made(hint, inside)
        elif name in values:
            given[name] = values[name]
    return kind(**given)
