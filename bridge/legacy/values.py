"""The values that a pickle read as data may hold besides Python's own, and checks of values."""

import reprlib
from typing import Any, NamedTuple

from bridge.legacy.instructions import BrokenPickle

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3


class Named(NamedTuple):
    """Something of Python's that the pickle names; it stays a name."""

    name: str


class Record(dict[Any, Any]):
    """An object of a class, or what a call gave: the fields or items that the file says of it.

    The class or function itself is never looked up; its name and arguments are kept.
    """

    __slots__ = ("name", "values_in_order")

    def __init__(self, name: str, values: tuple[Any, ...]):
        super().__init__()
        self.name, self.values_in_order = name, values

    def __repr__(self) -> str:
        return f"<{self.name[:80]}>"  # what it holds may hold itself, or have no end

    def take(self, state: Any) -> None:
        """Takes its fields: a dict of them, or that and a dict of those in slots."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                self.update(part)


class Building:
    """What a call began, and BUILD completes."""

    def build(self, state: Any) -> None:
        """Takes the state; raises BrokenPickle when it is not what is expected."""
        raise NotImplementedError


def brief(value: Any) -> str:
    """A value for a message; short, however deep and often nested it is."""
    return _SHORT.repr(value)[:80]


def natural(value: Any) -> bool:
    """Whether a value can be a size."""
    return type(value) is int and 0 <= value < 2**60


def as_dict(items: Any = ()) -> dict[Any, Any]:
    """A dict of the pairs that an OrderedDict was made from."""
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
