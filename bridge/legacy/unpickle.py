"""Reads a pickle as data, with a small stack machine that can only build plain values.

A pickle is a program for a stack machine, and Python's machine imports and calls whatever the
program names. This one knows dicts, lists, tuples, strings, numbers and the few names that the
caller passes, which depend on the format. Further names that the caller allows become a `Record`, a
name with values, and are never looked up; any other name is refused. It reads from a stream, so
large arrays can stay on disk.

(torch's `weights_only` has had vulnerabilities, and needs torch.) Tensors that depend on a `Record`
are refused.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from bridge.legacy.instructions import BYTES, BrokenPickle, InMemory, PickleStream, instructions
from bridge.legacy.values import Building, Named, Record, as_key, brief, expect
from jaxmodels.errors import UNSAFE, Problem

# A model of 1,000 tensors, with its optimiser, takes some 100,000. So many empty dicts, the worst,
# are 130 MB and a second.
MAX_STEPS = 2_000_000
MAX_VALUES = 2**24  # bytes of a pickle of plain values; 65 characters take 700

_MARK = object()


Call = Callable[..., Any]


def read_pickle(
    data: bytes | PickleStream,
    where: str,
    calls: Mapping[str, Call],
    constants: Container[str],
    persistent: Callable[[Any], Any] | None = None,
    records: Container[str] = (),
) -> Any:
    """The value that a pickle describes.

    Args:
        data: the pickle.
        where: the file, for messages.
        calls: name → function to call instead of it.
        constants: names that may be values, like `torch.FloatStorage`; they become `Named`.
        persistent: returns the value of a persistent id (in torch, a storage); None refuses them.
        records: classes and functions whose instances, or results, become a `Record`.

    Raises:
        Problem: (unsafe) it names anything else, or could run code in another way.
        BrokenPickle: it is not a pickle of plain values.
    """
    stream = InMemory(data) if isinstance(data, bytes) else data
    return _Machine(where, calls, constants, persistent, records).run(stream)


def read_values(path: Path) -> Any:
    """The plain values in a file that is one pickle.

    Raises:
        Problem: (unsafe) it names a class or function; (corrupt) it is not such a file.
    """
    if (size := path.stat().st_size) > MAX_VALUES:
        raise _no_values(path, f"{size:,} bytes; at most {MAX_VALUES:,} are read")
    try:
        return read_pickle(path.read_bytes(), str(path), {}, ())
    except BrokenPickle as error:
        raise _no_values(path, str(error)) from error


def _no_values(path: Path, why: str) -> Problem:
    fix = "fetch or save the file again"
    return Problem("the pickle cannot be read", where=str(path), why=why, fix=fix)


class _Machine:
    def __init__(
        self,
        where: str,
        calls: Mapping[str, Call],
        constants: Container[str],
        persistent: Callable[[Any], Any] | None,
        records: Container[str],
    ):
        self.where, self.calls, self.constants = where, calls, constants
        self.persistent, self.records = persistent, records
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.at = 0

    def run(self, stream: PickleStream) -> Any:
        try:
            for count, (name, argument, self.at) in enumerate(instructions(stream)):
                if name == "STOP":
                    return self.result()
                if count > MAX_STEPS:
                    raise BrokenPickle(f"it takes more than {MAX_STEPS:,} steps")
                self.step(name, argument)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            kind = "" if isinstance(error, BrokenPickle) else f"{type(error).__name__}: "
            raise BrokenPickle(f"{kind}{str(error)[:200]} (after byte {self.at})") from error
        raise BrokenPickle("it ends before its STOP")

    def result(self) -> Any:
        """The value left on the stack; a bare name is refused: it may be meant to be called."""
        value = self.stack.pop()
        if isinstance(value, Named) and value.name not in self.constants:
            raise self.refused(f"names {value.name[:200]}")
        return value

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
            (_extend if name == "APPEND" else _set)(self.stack, values)
        elif name == "POP":
            self.stack.pop()
        elif name == "GLOBAL":
            self.stack.append(self.named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.stack.pop(), self.stack.pop()
            self.stack.append(self.named(expect(module, str), expect(attribute, str)))
        elif name == "BINPERSID" and self.persistent:
            self.stack.append(self.persistent(self.stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = self.stack.pop(), self.stack.pop()
            self.stack.append(self.call(called, arguments))
        elif name in ("INST", "OBJ", "NEWOBJ_EX"):
            self.stack.append(self.instance(name, argument))
        elif name == "BUILD":
            self.build(self.stack.pop(), self.stack[-1])
        elif name in _CODE:
            raise self.refused(_uses(name, argument))
        else:
            raise BrokenPickle(f"it uses {name}, which such a file does not need")

    def since_mark(self) -> list[Any]:
        """Pops the values since the last MARK, and the MARK."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def named(self, module: str, attribute: str) -> Named:
        name = f"{module}.{attribute}"
        if name in self.calls or name in self.constants or name in self.records:
            return Named(name)
        raise self.refused(f"names {name[:200]}")

    def call(self, called: Any, arguments: Any) -> Any:
        if isinstance(called, Record):  # the result of an unknown call may be called, too
            return Record(called.name, expect(arguments, tuple))
        if isinstance(called, Named) and called.name in self.calls:
            return self.calls[called.name](*expect(arguments, tuple))
        if isinstance(called, Named) and called.name in _GETATTR:
            return self.attribute(*expect(arguments, tuple))
        if isinstance(called, Named) and called.name in self.records:
            return Record(called.name, expect(arguments, tuple))
        raise BrokenPickle(f"it calls {brief(called)}")

    def attribute(self, of: Any = None, name: Any = None, *_: Any) -> Named:
        """The result of getattr: a class in a class, as protocols before 4 name it."""
        if not isinstance(of, Named | Record) or not isinstance(name, str):
            raise self.refused(f"calls getattr with {brief(of)} and {brief(name)}")
        return self.named(of.name, name)

    def instance(self, name: str, argument: Any) -> Record:
        """An object from one of the instructions for instances of other classes."""
        fields: Any = None
        if name == "INST":
            of, values = Named(argument.replace(" ", ".", 1)), self.since_mark()
        elif name == "OBJ":
            of, *values = self.since_mark()
        else:
            fields, values, of = (self.stack.pop() for _ in range(3))
        if not isinstance(of, Named) or of.name in self.calls or of.name not in self.records:
            raise self.refused(_uses(name, argument))
        record = Record(of.name, tuple(values))
        record.take(fields)
        return record

    def build(self, state: Any, target: Any) -> None:
        if isinstance(target, Building):
            target.build(state)
        elif isinstance(target, Record):
            target.take(state)
        elif not isinstance(target, Named):  # a function may have attributes
            # An OrderedDict carries torch's `_metadata` besides its items: versions of modules.
            expect(target, dict)
            expect(state, dict)

    def refused(self, does: str) -> Problem:
        return Problem(
            "the file asks to run code, and was refused",
            where=self.where,
            why=f"its pickle {does} at byte {self.at}; loading it the usual way would import and "
            "may call that",
            fix="use it only if you trust it: save its tensors alone, as safetensors, elsewhere",
            exit_code=UNSAFE,
        )


def _uses(name: str, argument: Any) -> str:
    return f"uses {name}" + ("" if argument is None else f" of {brief(argument)}")


def _extend(stack: list[Any], values: Iterable[Any]) -> None:
    if not isinstance(stack[-1], Record):  # items of a record (a deque, say) are not needed
        expect(stack[-1], list).extend(values)


def _set(stack: list[Any], values: list[Any]) -> None:
    target = expect(stack[-1], dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[as_key(key)] = value


def _set_new(stack: list[Any], values: list[Any]) -> None:
    stack.append({})
    _set(stack, values)


_GETATTR = {"builtins.getattr", "__builtin__.getattr"}
# They import, call or fetch in ways that plain values do not need.
_CODE = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
_PUSHES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", *BYTES,
    "INT", "LONG", "FLOAT", "UNICODE",  # of protocol 0
}  # fmt: skip
_BUILDS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # a set would have to hash its members
}
_MARKED: dict[str, Callable[[list[Any], list[Any]], None]] = {
    "TUPLE": lambda stack, values: stack.append(tuple(values)),
    "LIST": lambda stack, values: stack.append(values),
    "FROZENSET": lambda stack, values: stack.append(values),
    "DICT": _set_new,
    "APPENDS": _extend,
    "ADDITEMS": _extend,
    "SETITEMS": _set,
}
