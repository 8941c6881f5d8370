"""The page of `--help`: a dataclass of options, its docstring, and the text of each field."""

import ast
import dataclasses
import inspect
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

COLUMN = 30
_BEHIND = 1000
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Flag(NamedTuple):
    """An option or an argument, as it is typed and explained."""

    name: str
    """With its dashes, "--out"; of an argument, as PATH."""
    values: str
    """What follows it; "" if nothing does."""
    help: str
    default: str
    """As it would be typed; "" where there is none, or it is off."""


def page(
    usage: str,
    cls: type,
    default: Any = None,
    groups: Mapping[str, str] | None = None,
    short: Mapping[str, str] | None = None,
    after: str = "",
    defaults: bool = True,
    without: str = "",
) -> str:
    """The page.

    Args:
        usage: the command, such as "jaxmodels eval"; arguments and "[options]" are added.
        cls: the dataclass.
        default: an instance whose values are the defaults; None takes those of the class.
        groups: title → patterns of the names (without dashes) of its flags, in order; a flag
            belongs to the first group that has it, and to "options" if none does.
        short: flag → the name by which it is shown (both without dashes).
        after: a paragraph below the description.
        defaults: show them.
        without: the title of a group to leave out.
    """
    width, groups, short = min(shutil.get_terminal_size().columns, 100), groups or {}, short or {}
    members: dict[str, list[Flag]] = {title: [] for title in ("arguments", *groups, "options")}
    for flag in flags(cls, default):
        name = flag.name.removeprefix("--")
        if name in short:
            flag = flag._replace(name=f"--{short[name]}")
        members[group_of(flag, groups)].append(flag)
    words = [usage, *(flag.name for flag in members["arguments"]), "[options]"]
    lines = [f"usage: {' '.join(words)}"]
    for paragraph in (*(inspect.getdoc(cls) or "").split("\n\n"), *after.split("\n\n")):
        wrapped = paragraph.splitlines() if paragraph == after else textwrap.wrap(paragraph, width)
        lines += ["", *wrapped] if paragraph else []
    for title, found in members.items():
        if found and title != without:
            patterns = groups.get(title, "").split()
            found.sort(key=lambda flag: _place(flag, patterns))
            lines += ["", f"{title}:"]
            lines += [line for flag in found for line in _lines(flag, width, defaults)]
    return "\n".join(lines)


def flags(cls: type, default: Any = None, prefix: str = "") -> Iterator[Flag]:
    """The flags of a dataclass, and of the dataclasses in its fields.

    Args:
        cls: the dataclass.
        default: an instance whose values are the defaults; None takes those of the class.
        prefix: what the names begin with, such as "optim.".
    """
    texts, hints = field_docs(cls), get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        value = field.default if default is None else getattr(default, field.name)
        hint, name = hints[field.name], prefix + field.name.replace("_", "-")
        options = [part for part in getattr(hint, "__metadata__", ()) if hasattr(part, "metavar")]
        named = next((option.name for option in options if option.name is not None), name)
        if dataclasses.is_dataclass(value):
            yield from flags(type(value), value, f"{named}." if named else "")
            continue
        metavar = next((option.metavar for option in options if option.metavar), "")
        text = texts.get(field.name, "")
        if _is_positional(hint):
            yield Flag(metavar or named.upper(), "", text, "")
        elif value is True:  # only the flag that turns it off exists
            turn_off = f"--{prefix}no-{name.removeprefix(prefix)}"
            yield Flag(turn_off, "", f"Turn off: {text}", "")
        else:
            yield Flag(f"--{name}", metavar or _values(hint, value), text, _typed(value))


def field_docs(cls: type) -> dict[str, str]:
    """Field → the string below it in the source, in one line."""
    body: list[Any] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    own = {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body[0].body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    bases = [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    return {name: text for base in bases for name, text in field_docs(base).items()} | own


def group_of(flag: Flag, groups: Mapping[str, str]) -> str:
    """The title under which a flag is shown."""
    if not flag.name.startswith("--"):
        return "arguments"
    fits = (title for title, names in groups.items() if _place(flag, names.split()) < _BEHIND)
    return next(fits, "options")


def _place(flag: Flag, patterns: list[str]) -> int:
    """Where a flag stands in a group; _BEHIND if it is none of it."""
    name = flag.name.removeprefix("--")
    return next((i for i, each in enumerate(patterns) if fnmatch(name, each)), _BEHIND)


def _is_positional(hint: Any) -> bool:
    from tyro.conf import Positional

    _, marker = get_args(Positional[int])
    return marker in getattr(hint, "__metadata__", ())


def _values(hint: Any, value: Any) -> str:
    """What follows a flag of this type, as PATH or {cosine,linear}."""
    hint = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
    if isinstance(value, bool):
        return ""
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return "|".join(_values(part, None) for part in parts)
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is ...:
            return f"[{_values(kinds[0], None)} ...]"
        return " ".join(_values(kind, None) for kind in kinds)
    return _METAVARS.get(hint, hint.__name__.upper())


def _typed(value: Any) -> str:
    if value in (None, "", (), dataclasses.MISSING) or isinstance(value, bool):
        return ""
    words = value if isinstance(value, tuple) else (value,)
    flat = [part for word in words for part in (word if isinstance(word, tuple) else (word,))]
    return " ".join(shlex.quote(f"{w:g}" if isinstance(w, float) else str(w)) for w in flat)


def _lines(flag: Flag, width: int, defaults: bool) -> Iterator[str]:
    head = f"  {flag.name} {flag.values}".rstrip()
    text = f"{flag.help} (default: {flag.default})" if defaults and flag.default else flag.help
    lines = textwrap.wrap(text, width - COLUMN, break_long_words=False)
    if len(head) < COLUMN - 1 and lines:
        yield f"{head:<{COLUMN}}{lines.pop(0)}"
    else:
        yield head
    yield from (" " * COLUMN + line for line in lines)
