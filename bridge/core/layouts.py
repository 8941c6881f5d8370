"""The tables of weight names in an architecture's `layout.py`."""

from typing import Any

from bridge.core.table import Rows


def own_rows(package: Any) -> Rows:
    """The table of our own parameters saved as a tree: names are our paths, joined by dots."""
    return tuple((ours, ours.replace("/", "."), "same") for ours, _, _ in package.WEIGHTS)


def tables(package: Any) -> list[tuple[str, Rows]]:
    """Every table that a checkpoint of this architecture may follow, and its name.

    A table whose names all begin with the PREFIX of the package's layout stands there without it
    too.
    """
    labels = "WEIGHTS", "SAVED", "UPSTREAM", "GGUF"
    known = [(name, rows) for name in labels if (rows := getattr(package, name))]
    start = package.PREFIX
    short = [
        (name, tuple((ours, theirs.removeprefix(start), op) for ours, theirs, op in rows))
        for name, rows in known
        if start and all(theirs.startswith(start) for _, theirs, _ in rows)
    ]
    return [*known, *short, ("own", own_rows(package))]


def ties_of(package: Any) -> tuple[tuple[str, str], ...]:
    """(further name on their side, our path whose values it repeats), of all that are known."""
    return (*package.TIED, *package.ALSO_TIED)
