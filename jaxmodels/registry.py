"""The architectures: our own, installed ones, and those that a program registers.

A package outside this repository is added as `NAME` in one of two ways, and then works with
everything: `create`, `train`, `convert`, `list` and the rest.

- `jaxmodels.registry.register(NAME, "its.package")`, for the running program;
- an entry point of an installed distribution, for the command too:

      [project.entry-points."jaxmodels.architectures"]
      NAME = "its.package"

Only installed or registered packages are imported, never a name from a checkpoint.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
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
    """Name of an architecture → full name of its package, a read-only mapping.

    Installed packages are looked up when needed. Iteration leaves out those that cannot be used,
    with a warning; `arch` raises the error.
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
"""Name of an architecture → full name of its package, of all that are known."""


def register(name: str, package: str) -> None:
    """Adds an architecture for the running program.

    Args:
        name: as in "charlm:tiny": letters, digits and underscores.
        package: full name of an importable package with the members that `jaxmodels.architecture`
            documents.

    Raises:
        Problem: (usage) the name is taken or invalid, the package cannot be imported, or members
            are missing or misspelt.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise Problem(
            f"{name!r} cannot name an architecture",
            why="a name consists of lower-case letters, digits and underscores",
            exit_code=USAGE,
        )
    if name in ARCHS and ARCHS[name] != package:
        raise Problem(
            f"the architecture {name} is {ARCHS[name]}, and cannot be {package} too",
            fix="register it under another name",
            exit_code=USAGE,
        )
    other = next((each for each in (*OURS, *ARCHS.registered) if ARCHS[each] == package), name)
    if other != name:
        raise Problem(
            f"the package {package} is registered already, as {other}",
            why="the package of a model's class determines its architecture",
            exit_code=USAGE,
        )
    _opened(name, package)
    if name not in ARCHS:
        ARCHS.registered[name] = package


def arch(name: str) -> Architecture:
    """The package of an architecture, with defaults for the optional members that it lacks.

    Raises:
        Problem: (usage) there is no such architecture (similar names are suggested), or its
            package cannot be used.
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
            fix="install what it needs, fix it, or uninstall it",
            exit_code=USAGE,
        ) from error
    if wrong := complaints(module):
        raise Problem(
            f"the package of the architecture {name} is incomplete",
            where=package,
            why="\n".join(wrong),
            fix="`jaxmodels/architecture.py` documents what a package exports",
            exit_code=USAGE,
        )
    return Architecture.of(module, name)


@cache
def _installed() -> dict[str, str]:
    """Name → package of the entry points, except names that are ours or occur twice."""
    from importlib.metadata import entry_points

    found: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        # `python -m` looks for packages in the current folder, which may be a checkpoint's.
        if point.dist is not None and Path(str(point.dist.locate_file(""))).resolve() == Path.cwd():
            continue
        if point.name in OURS or found.get(point.name, point.value) != point.value:
            taken = OURS.get(point.name) or found[point.name]
            say(f"the installed package {point.value} is left out: {point.name} is {taken}")
        else:
            found[point.name] = point.value
    return found


@cache
def _usable() -> tuple[str, ...]:
    """Names of the installed packages that can be used, with a warning for each other one."""
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
    """The package of an architecture that can be trained, evaluated and sampled by itself.

    Raises:
        Problem: (usage) as `arch`; or it is only a part of other models, like dinov2.
    """
    package = arch(name)
    if wholes := package.PART_OF:
        raise Problem(
            f"{name} cannot be trained, evaluated or sampled by itself",
            why=f"it reads no text and has no loss: it is a part of {' and '.join(wholes)}",
            fix=f"use one of those, for example {wholes[0]}:tiny",
            exit_code=USAGE,
        )
    return package


def package_of(thing: Any) -> Architecture:
    """The package of a model or a Config.

    Raises:
        Problem: (usage) it is from a package that is not registered.
    """
    module = type(thing).__module__
    for name in ARCHS:
        if module.startswith(f"{ARCHS[name]}."):
            return arch(name)
    raise Problem(
        f"{module}.{type(thing).__name__} is not from a registered architecture",
        fix="call jaxmodels.registry.register(NAME, PACKAGE) first",
        exit_code=USAGE,
    )


def preset(spec: str) -> tuple[str, str, Any]:
    """Splits "charlm:tiny" into architecture, preset name and the preset's Config.

    Raises:
        Problem: (usage) unknown architecture or preset; similar names are suggested.
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
