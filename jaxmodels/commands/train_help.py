"""`jaxmodels train --help`: what is needed first, then groups.

Texts and defaults are those of the dataclasses `Train`, `Recipe`, `Optim` and the model's Config;
only their order is decided here.
"""

import ast
import dataclasses
import inspect
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jaxmodels

GROUPS = {
    "start here": "out data tokenizer batch steps lr max-hours init",
    "data": "vocab-documents min-freq segments valid-fraction seed",
    "optimiser": "optim.name optim.b? optim.eps optim.momentum optim.weight-decay optim.no-decay "
    "optim.clip optim.lr-scale optim.muon-* accum ema-decay on-divergence init-optimizer",
    "schedule": "optim.schedule optim.schedule-steps optim.warmup optim.decay optim.*-lr find-lr",
    "output": "save-every save-minutes keep jump eval-every eval-batches patience sample-every "
    "prompt stats-every profile resume config print-config json",
    "devices": "dtype remat slices mesh xla",
    "cluster": "coordinator processes process join-timeout heartbeat",
    "model": "model.*",
}
"""Title → patterns of its flags, in order."""

SHORT = {"optim.peak-lr": "lr"}
"""Flag → the name by which it is shown; both are accepted."""

_COLUMN, _BEHIND = 30, 1000
_METAVARS = {int: "N", float: "X", str: "TEXT"}


class Flag(NamedTuple):
    """An option, as it is typed and explained."""

    name: str
    values: str
    """What follows it; "" if nothing does."""
    help: str
    default: str


def print_help(options: Any, spec: str) -> None:
    """Prints the page.

    Args:
        options: the options (`Train`) with the preset's values as defaults.
        spec: ARCH:PRESET; if it is "", presets are shown instead of defaults and the model's sizes.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    about = "Train a preset. To continue a run, repeat the command or give only --out."
    print(f"usage: jaxmodels train {spec or 'ARCH:PRESET'} [options]", about, sep="\n\n")
    groups: dict[str, list[Flag]] = {title: [] for title in (*GROUPS, "more")}
    for flag in flags(options):
        groups[group_of(flag.name)].append(flag)
    if not spec:
        del groups["model"]
        print("\npresets (`jaxmodels list` shows their sizes):")
        for arch in jaxmodels.ARCHS:
            if recipes := getattr(jaxmodels.arch(arch), "RECIPES", None):
                print(f"  {arch:<15}{', '.join(recipes)}")
        print("\nDefaults and the model's sizes: jaxmodels train ARCH:PRESET --help")
    for title, members in groups.items():
        if members:
            print(f"\n{title}:")
            for flag in sorted(members, key=lambda flag: _place(title, flag.name)):
                print(*_lines(flag, width, bool(spec)), sep="\n")


def flags(options: Any, prefix: str = "") -> Iterator[Flag]:
    """The flags of a dataclass, and of the dataclasses in its fields.

    Args:
        options: an instance, whose values are the defaults.
        prefix: what the names begin with, such as "optim.".
    """
    texts, hints = field_docs(type(options)), get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from flags(value, "" if name == "recipe" else f"{name}.")
        else:
            text = texts.get(field.name, "")
            if value is True:  # only the flag that turns it off exists
                name, text = prefix + "no-" + name.removeprefix(prefix), f"Turn off: {text}"
            values = _values(hints[field.name], value)
            yield Flag(SHORT.get(name, name), values, text, _shown(value))


def field_docs(cls: type) -> dict[str, str]:
    """Field → the string below it in the source, in one line."""
    body: list[Any] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body[0].body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def group_of(name: str) -> str:
    """The title under which a flag is shown."""
    return next((title for title in GROUPS if _place(title, name) < _BEHIND), "more")


def _place(title: str, name: str) -> int:
    """Where a flag stands in a group; _BEHIND if it is none of it."""
    patterns = enumerate(GROUPS.get(title, "").split())
    return next((place for place, pattern in patterns if fnmatch(name, pattern)), _BEHIND)


def _values(hint: Any, value: Any) -> str:
    """What follows a flag of this type, as PATH or {cosine,linear}."""
    if isinstance(value, bool):
        return ""
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is ...:
            return f"[{_values(kinds[0], None)} ...]"
        return " ".join(_values(kind, None) for kind in kinds)
    (kind, *_) = [part for part in get_args(hint) or (hint,) if part is not type(None)]
    return _METAVARS.get(kind, kind.__name__.upper())


def _shown(value: Any) -> str:
    """A default as it would be typed; "" where there is none, or it is off."""
    if value is None or isinstance(value, bool) or value in ("", ()):
        return ""
    words = value if isinstance(value, tuple) else (value,)
    flat = [part for word in words for part in (word if isinstance(word, tuple) else (word,))]
    return " ".join(shlex.quote(f"{w:g}" if isinstance(w, float) else str(w)) for w in flat)


def _lines(flag: Flag, width: int, defaults: bool) -> Iterator[str]:
    head = f"  --{flag.name} {flag.values}".rstrip()
    text = f"{flag.help} (default: {flag.default})" if defaults and flag.default else flag.help
    lines = textwrap.wrap(text, width - _COLUMN, break_long_words=False)
    if len(head) < _COLUMN - 1 and lines:
        yield f"{head:<{_COLUMN}}{lines.pop(0)}"
    else:
        yield head
    yield from (" " * _COLUMN + line for line in lines)
