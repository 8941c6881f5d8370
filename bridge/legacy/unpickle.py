"""Reads the pickle inside a torch file as data: a tiny machine that can build plain values only.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever the
program names. This one knows dicts, lists, tuples, strings, numbers and the few names that torch
writes; at any other name it stops.
"""

import pickletools
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

from jaxmodels.errors import UNSAFE, Problem

MAX_STEPS = 20_000_000

_MARK = object()


class Named(NamedTuple):
    """Something of Python's that the pickle names; it stays a name."""

    name: str


class Record(dict[str, Any]):
    """The fields of an object of a plain class, by name; the class itself is never looked up."""


class BrokenPickle(ValueError):
    """The bytes are no pickle of plain values."""


Call = Callable[..., Any]


def read_pickle(
    data: bytes,
    where: str,
    calls: dict[str, Call],
    constants: Container[str],
    persistent: Callable[[Any], Any],
    records: Container[str] = (),
) -> Any:
    """The value that a pickle describes.

    Args:
        data: the pickle.
        where: the file, for messages.
        calls: name → what stands in for a call of it.
        constants: names that may stand as values, as `torch.FloatStorage` does: as `Named`.
        persistent: what a persistent id (a storage, for torch) stands for.
        records: plain classes of the seeds; an instance is read as a `Record` of its fields.

    Raises:
        Problem: (unsafe) it names anything else.
        BrokenPickle: it is no pickle of plain values.
    """
    return _Machine(where, calls, constants, persistent, records).run(data)


class _Machine:
    def __init__(
        self,
        where: str,
        calls: dict[str, Call],
        constants: Container[str],
        persistent: Callable[[Any], Any],
        records: Container[str],
    ):
        self.where, self.calls, self.constants = where, calls, constants
        self.persistent, self.records = persistent, records
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if opcode.name == "STOP":
                    return self.stack.pop()
                if count > MAX_STEPS:
                    raise BrokenPickle(f"it takes more than {MAX_STEPS:,} steps")
                self.step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BrokenPickle):
                raise
            raise BrokenPickle(f"{type(error).__name__}: {str(error)[:200]}") from error
        raise BrokenPickle("it ends before its STOP")

    def step(self, name: str, argument: Any) -> None:
        """One instruction, by its name in `pickletools`."""
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSHES:
            self.stack.append(argument)
        elif name in _BUILDS:
            self.stack.append(_BUILDS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            values = [self.stack.pop() for _ in range(size)][::-1]
            self.stack.append(tuple(values))
        elif name in _MARKED:
            _MARKED[name](self.stack, self.since_mark())
        elif name in ("APPEND", "SETITEM"):
            values = [self.stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
            (_append if name == "APPEND" else _set)(self.stack, values)
        elif name == "GLOBAL":
            self.stack.append(self.named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.stack.pop(), self.stack.pop()
            self.stack.append(self.named(module, attribute))
        elif name == "BINPERSID":
            self.stack.append(self.persistent(self.stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = self.stack.pop(), self.stack.pop()
            self.stack.append(self.call(called, arguments))
        elif name == "BUILD":
            # An OrderedDict carries torch's `_metadata` besides its items: versions of modules.
            state, target = _expect(self.stack.pop(), dict), _expect(self.stack[-1], dict)
            if isinstance(target, Record):
                target.update(state)
        else:
            raise BrokenPickle(f"it uses {name}, which torch does not write")

    def since_mark(self) -> list[Any]:
        """What was pushed since the last MARK; both are taken off."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def named(self, module: Any, attribute: Any) -> Named:
        name = f"{module}.{attribute}"
        if name in self.calls or name in self.constants or name in self.records:
            return Named(name)
        raise Problem(
            "the file asks to run code, and was refused",
            where=self.where,
            why=f"its pickle names {name}; loading it the usual way would import and may call that",
            fix="use it only if you trust it: save its tensors alone, as safetensors, elsewhere",
            exit_code=UNSAFE,
        )

    def call(self, called: Any, arguments: Any) -> Any:
        if isinstance(called, Named) and called.name in self.records and not arguments:
            return Record()
        if not isinstance(called, Named) or called.name not in self.calls:
            raise BrokenPickle(f"it calls {str(called)[:80]}")
        return self.calls[called.name](*_expect(arguments, tuple))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise BrokenPickle(f"a {kind.__name__} was expected, not a {type(value).__name__}")
    return value


def _append(stack: list[Any], values: Iterable[Any]) -> None:
    _expect(stack[-1], list).extend(values)


def _set(stack: list[Any], values: list[Any]) -> None:
    target = _expect(stack[-1], dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int | float | tuple):
            raise BrokenPickle(f"a {type(key).__name__} as a key")
        target[key] = value


_PUSHES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_BUILDS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_MARKED: dict[str, Callable[[list[Any], list[Any]], None]] = {
    "TUPLE": lambda stack, values: stack.append(tuple(values)),
    "APPENDS": _append,
    "SETITEMS": _set,
}
