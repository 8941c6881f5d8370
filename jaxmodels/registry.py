"""Which architectures there are: ours, installed ones, and those that a program registers.

A package outside of this repository joins as `NAME` in one of two ways, and then takes part in
everything: `create`, `train`, `convert`, `list` and the rest.

- `jaxmodels.registry.register(NAME, "its.package")`, for the running program;
- an entry point of an installed distribution, for the command too:

      [project.entry-points."jaxmodels.architectures"]
      NAME = "its.package"

Only what is installed or registered is imported, never a name that a checkpoint contains.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from jaxmodels.architecture import Architecture, complaints
from jaxmodels.cli import say
from jaxmodels.errors import USAGE, Problem

GROUP = "jaxmodels.architectures"
"""The entry points' group."""
OURS = {
    "bitgen": "jaxmodels.bitgen",
    "bitgen_stage1": "jaxmodels.bitgen_stage1",
    "bwetaf": "jaxmodels.bwetaf",
    "charlm": "jaxmodels.charlm",
    "dinov2": "jaxmodels.dinov2",
    "wigip": "jaxmodels.wigip",
    "wikigpt": "jaxmodels.wikigpt",
}


class _Registry(Mapping[str, str]):
    """Name → full name of the package. Installed packages are looked for when they are asked for.

    One that is installed and cannot be used is left out where all are gone through, with a
    warning: it must not stand in the way of the others. `arch` says what is wrong with it.
    """

    def __init__(self) -> None:
        self.registered: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        return OURS.get(name) or self.registered.get(name) or _installed()[name]

    def __iter__(self) -> Iterator[str]:
        yield from OURS
        yield from self.registered
        yield from (name for name in _usable() if name not in self.registered)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ARCHS = _Registry()


def register(name: str, package: str) -> None:
    """Adds an architecture for the running program.

    Args:
        name: as in "charlm:tiny": letters, digits and underscores.
        package: full name of a package that can be imported and has the members that
            `jaxmodels.architecture` says.

    Raises:
        Problem: (usage) the name is taken or no name, the package cannot be imported, or members
            are missing or misspelt.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise Problem(
            f"{name!r} cannot name an architecture",
            why="names are of lower-case letters, digits and underscores",
            exit_code=USAGE,
        )
    if name in ARCHS and ARCHS[name] != package:
        raise Problem(
            f"the architecture {name} is {ARCHS[name]}, and cannot be {package} too",
            fix="register it under another name",
            exit_code=USAGE,
        )
    _opened(name, package)
    if name not in ARCHS:
        ARCHS.registered[name] = package


def arch(name: str) -> Architecture:
    """The package of an architecture, with defaults for the optional members that it lacks.

    Raises:
        Problem: (usage) there is no such architecture, near names are suggested; or its package
            cannot be used.
    """
    if name not in ARCHS:
        raise _unknown("architecture", name, ARCHS)
    return _opened(name, ARCHS[name])


@cache
def _opened(name: str, package: str) -> Architecture:
    if name in OURS:
        return Architecture.of(import_module(package), name)
    try:
        module = import_module(package)
    except Exception as error:
        raise Problem(
            f"the package of the architecture {name} cannot be imported",
            where=package,
            why=f"{type(error).__name__}: {error}",
            fix="install what it needs, mend it, or uninstall it",
            exit_code=USAGE,
        ) from error
    if wrong := complaints(module):
        raise Problem(
            f"the package of the architecture {name} is not complete",
            where=package,
            why="\n".join(wrong),
            fix="`jaxmodels/architecture.py` says what a package exports",
            exit_code=USAGE,
        )
    return Architecture.of(module, name)


@cache
def _installed() -> dict[str, str]:
    """Name → package of the entry points; a name that is ours, or in two of them, is left out."""
    from importlib.metadata import entry_points

    found: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        if point.name in OURS or found.get(point.name, point.value) != point.value:
            taken = OURS.get(point.name) or found[point.name]
            say(f"the installed package {point.value} is left out: {point.name} is {taken}")
        else:
            found[point.name] = point.value
    return found


@cache
def _usable() -> tuple[str, ...]:
    """The installed ones without those that cannot be used, with a warning for each of these."""
    usable = []
    for name, package in _installed().items():
        try:
            _opened(name, package)
        except Problem as problem:
            say(f"left out: {problem.what} ({package}: {problem.why})")
        else:
            usable.append(name)
    return tuple(usable)


def learner(name: str) -> Architecture:
    """The package of an architecture that can be trained, measured and sampled by itself.

    Raises:
        Problem: (usage) as `arch`; or it is a part of other models.
    """
    package = arch(name)
    if wholes := package.PART_OF:
        raise Problem(
            f"{name} cannot be trained, measured or sampled by itself",
            why=f"it reads no text and has no loss: it is a part of {' and '.join(wholes)}",
            fix=f"take one of those, for example {wholes[0]}:tiny",
            exit_code=USAGE,
        )
    return package


def package_of(thing: Any) -> Architecture:
    """The package that a model, or a Config, comes from."""
    module = type(thing).__module__
    for name in ARCHS:
        if module.startswith(f"{ARCHS[name]}."):
            return arch(name)
    raise Problem(
        f"{module}.{type(thing).__name__} is of no registered architecture",
        fix="call jaxmodels.registry.register(NAME, PACKAGE) first",
        exit_code=USAGE,
    )


def preset(spec: str) -> tuple[str, str, Any]:
    """Splits "charlm:tiny" into architecture, preset name and the preset's Config.

    Raises:
        Problem: (usage) unknown architecture or preset; near names are suggested.
    """
    name, _, size = spec.partition(":")
    presets = arch(name).PRESETS
    if not size:
        raise Problem(
            f"the preset of {name} is missing",
            why=f"known: {', '.join(presets)}",
            fix=f"for example {name}:{next(iter(presets))}",
            exit_code=USAGE,
        )
    if size not in presets:
        raise _unknown(f"preset of {name}", size, presets)
    return name, size, presets[size]


def _unknown(kind: str, name: str, known: Any) -> Problem:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return Problem(
        f"unknown {kind}: {name!r}",
        why=f"known: {', '.join(known)}",
        fix=f"did you mean {' or '.join(near)}?" if near else "see `jaxmodels list`",
        exit_code=USAGE,
    )
