"""What torch files hold besides tensors: numbers of numpy, settings, states of generators, paths.

Nobody needs most of it, and none of it is made: numbers and arrays are read, and anything else
becomes a `Record`, a name with values. Only names that act on the system, or run code that the file
gives them, are refused, since no file of values has reason to name them.
"""

import re
from collections.abc import Callable
from typing import Any

from bridge.legacy.array_pickle import NUMPY, Array, bytes_of_old, kind_of
from bridge.legacy.instructions import BrokenPickle
from bridge.legacy.values import Record, as_dict

# Modules of which nothing may be named, and those that others lead to, as `torch.os.system` does.
_MODULES = set(
    "os posix nt sys subprocess shutil socket ssl pty runpy importlib imp code codeop ctypes "
    "_ctypes commands popen2 pickle _pickle cPickle marshal webbrowser platform timeit pdb bdb "
    "trace profile cProfile pydoc pip distutils setuptools venv ensurepip urllib urllib2 requests "
    "http httplib ftplib smtplib telnetlib paramiko".split()
)
_WITHIN = set("os posix sys subprocess shutil socket importlib ctypes pickle builtins".split())
_PACKAGES = ("torch.hub.", "torch.utils.cpp_extension.", "numpy.f2py.", "numpy.testing.")
_BUILTINS = set(
    "eval exec compile open __import__ setattr delattr breakpoint input globals locals vars "
    "execfile apply file reload".split()
)
_NAMES = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    *(f"{module}.{name}" for module in ("io", "_io", "codecs") for name in ("open", "FileIO")),
    *(f"{module}.{name}" for module in ("operator", "_operator")
      for name in ("attrgetter", "methodcaller")),
    *(f"{module}.load" for module in ("torch", "torch.serialization", "torch.jit", "numpy",
                                      "joblib", "dill", "cloudpickle")),
    *(f"torch.{module}.load_library" for module in ("ops", "classes")),
    "pandas.read_pickle",
}  # fmt: skip
_SPECIAL = re.compile(r"__\w+__")  # ways from any object to all others, as `__globals__`
_MADE = "__new__"  # but for this, which protocols before 4 name


class Harmless:
    """The names that may stand in a torch file: all but those that reach for code."""

    def __contains__(self, name: object) -> bool:
        full = str(name)
        module, *inside = full.split(".")
        special = any(_SPECIAL.fullmatch(part) for part in inside if part != _MADE)
        reaching = module in _MODULES or not _WITHIN.isdisjoint(inside[:-1])
        return not (special or reaching or full in _NAMES or full.startswith(_PACKAGES))


class _AnyArray(Array):
    """An array, or what has no values where they are no numbers."""

    def build(self, state: Any) -> None:
        """As an `Array` does; passes over a state that is none of numbers."""
        try:
            super().build(state)
        except BrokenPickle:
            self.dtype = None


def _loosely(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call; what it cannot make becomes a Record."""

    def made(*arguments: Any) -> Any:
        try:
            result = call(*arguments)
        except (BrokenPickle, TypeError, ValueError, AttributeError):
            return Record(name, arguments)
        if isinstance(result, Array) and result.dtype is None:
            return _AnyArray()
        if name.endswith(".scalar"):
            number = result.values().item()
            return number if isinstance(number, bool | int | float) else float(number)
        return Record(name, arguments) if result is None else result

    return made


def _items(*_: Any) -> dict[Any, Any]:
    """A defaultdict, whose items follow."""
    return {}


def _members(members: Any = ()) -> Any:
    """A set or a list, of which only the members matter."""
    return list(members) if isinstance(members, list | tuple) else Record("list", (members,))


def _builtin(name: str) -> tuple[str, str]:
    return f"builtins.{name}", f"__builtin__.{name}"


# Name → what stands in for a call of it.
CALLS: dict[str, Callable[..., Any]] = {
    **{name: _loosely(name, call) for name, call in {**NUMPY, "numpy.dtype": kind_of}.items()},
    "collections.OrderedDict": as_dict,
    "collections.defaultdict": _items,
    **dict.fromkeys((*_builtin("set"), *_builtin("frozenset"), *_builtin("list")), _members),
    **dict.fromkeys(_builtin("dict"), as_dict),
    **dict.fromkeys(_builtin("bytes"), _loosely("bytes", bytes_of_old)),
}
