"""Which architectures there are, and their packages by name."""

import difflib
from importlib import import_module
from types import ModuleType
from typing import Any

from jaxmodels.errors import USAGE, Problem

ARCHS = {
    "bitgen": "jaxmodels.bitgen",
    "bitgen_stage1": "jaxmodels.bitgen_stage1",
    "bwetaf": "jaxmodels.bwetaf",
    "charlm": "jaxmodels.charlm",
    "dinov2": "jaxmodels.dinov2",
    "wigip": "jaxmodels.wigip",
    "wikigpt": "jaxmodels.wikigpt",
}


def arch(name: str) -> ModuleType:
    """The package of an architecture, by its name in `ARCHS`.

    Raises:
        Problem: (usage) there is no such architecture; near names are suggested.
    """
    if name not in ARCHS:
        raise _unknown("architecture", name, ARCHS)
    return import_module(ARCHS[name])


def learner(name: str) -> ModuleType:
    """The package of an architecture that can be trained, measured and sampled by itself.

    Raises:
        Problem: (usage) as `arch`; or it is a part of other models.
    """
    package = arch(name)
    if wholes := getattr(package, "PART_OF", ()):
        raise Problem(
            f"{name} cannot be trained, measured or sampled by itself",
            why=f"it reads no text and has no loss: it is a part of {' and '.join(wholes)}",
            fix=f"take one of those, for example {wholes[0]}:tiny",
            exit_code=USAGE,
        )
    return package


def package_of(model: Any) -> ModuleType:
    """The package that a model comes from."""
    return import_module(type(model).__module__.rpartition(".")[0])


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
