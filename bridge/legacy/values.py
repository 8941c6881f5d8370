"""The results of reading a pickle as data, other than plain values, and checks of values."""

import reprlib
from typing import Any, NamedTuple

from bridge.legacy.instructions import BrokenPickle

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3


class Named(NamedTuple):
    """The name of a class or function in a pickle, which is not looked up."""

    name: str


class Record(dict[Any, Any]):
    """An instance of a class, or the result of a call, as its fields or items in the file.

    The class or function is never looked up; its name and arguments are kept.
    """

    __slots__ = ("name", "values_in_order")

    def __init__(self, name: str, values: tuple[Any, ...]):
        super().__init__()
        self.name, self.values_in_order = name, values

    def __repr__(self) -> str:
        return f"<{self.name[:80]}>"  # its items may contain itself, or be endlessly many

    def take(self, state: Any) -> None:
        """Sets its fields from a dict, or from a pair of dicts, the second with slots."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                self.update(part)


class Building:
    """An object that a call creates and BUILD completes."""

    def build(self, state: Any) -> None:
        """Sets the state; raises BrokenPickle if it is not as expected."""
        raise NotImplementedError


def brief(value: Any) -> str:
    """A value for a message, short however deeply it is nested."""
    return _SHORT.repr(value)[:80]


def natural(value: Any) -> bool:
    """Whether a value can be a size."""
    return type(value) is int and 0 <= value < 2**60


def as_dict(items: Any = ()) -> dict[Any, Any]:
    """A dict, from the arguments of an OrderedDict."""
    pairs = items.items() if isinstance(items, dict) else expect(items, list | tuple)
    result: dict[Any, Any] = {}
    for key, value in pairs:
        result[as_key(key)] = value
    return result


def expect(value: Any, kind: Any) -> Any:
    """The value, if it is of a kind (a class or a union of some); else raises BrokenPickle."""
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise BrokenPickle(f"a {expected} was expected, not a {type(value).__name__}")
    return value


def as_key(key: Any) -> Any:
    """A key of a dict as it is, or its description: hashing nested tuples could take for ever."""
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, str | int | float | None):
            return Named(brief(key))
    return key
