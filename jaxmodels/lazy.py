"""Exports that import their module on first use, so that `--help` need not wait for JAX."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, exports: dict[str, str]) -> Callable[[str], Any]:
    """The module-level `__getattr__` (PEP 562) of `package`.

    Args:
        package: full name of the package, its `__name__`.
        exports: name → submodule that defines it.
    """

    def getattribute(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f"{package}.{exports[name]}"), name)
        except AttributeError as error:  # which would look as if there were no such export
            raise ImportError(f"{package}.{name} cannot be imported: {error}") from error
        setattr(sys.modules[package], name, value)
        return value

    return getattribute
