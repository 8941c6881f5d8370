"""Which architecture and which of its tables a checkpoint follows, and what it says twice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge import parts, table
from bridge.contents import Contents
from bridge.table import Rows
from bridge.tensors import Tensor, raw
from jaxmodels.errors import MISMATCH, Problem


def own_rows(package: Any) -> Rows:
    """The table of our own parameters saved as a tree: names are our paths, joined by dots."""
    return tuple((ours, ours.replace("/", "."), "same") for ours, _, _ in package.WEIGHTS)


def tables(package: Any) -> dict[str, Rows]:
    """Every table that a checkpoint of this architecture may follow, by name."""
    known = {name: getattr(package, name, ()) for name in ("WEIGHTS", "SAVED", "SEED")}
    return {name: rows for name, rows in known.items() if rows} | {"own": own_rows(package)}


def candidate_tables(
    contents: Contents, found: Mapping[str, Tensor], arch: str | None
) -> tuple[str, list[Rows]]:
    """The architecture, and those of its tables whose names fit best.

    Two tables may have the same names and differ in layout only: shapes decide then.
    """
    stated = arch or contents.arch
    fits: dict[str, list[tuple[float, Rows]]] = {}
    for name in dict.fromkeys([*([stated] if stated else []), *jaxmodels.ARCHS]):
        package = jaxmodels.arch(name)
        ties = {tied for tied, _ in getattr(package, "TIED", ())}
        prefix = table.common_prefix(found)
        names = [n.removeprefix(prefix) for n in found if n.removeprefix(prefix) not in ties]
        chosen = contents.table if name == contents.arch else None
        fits[name] = [
            (table.coverage(rows, parts.names(rows, names)), rows)
            for label, rows in tables(package).items()
            if chosen in (None, label)
        ]
    best = {name: max(score for score, _ in entries) for name, entries in fits.items()}
    closest = max(best, key=lambda name: best[name])
    name = stated or closest
    other = stated is not None and closest != stated and best[closest] > best[name] + 0.25
    if best[name] == 0 or other or (stated is None and best[name] < 0.5):
        raise _stranger(contents, found, arch, stated, closest, best[closest])
    return name, [rows for score, rows in fits[name] if score == best[name]]


def _stranger(
    contents: Contents,
    found: Mapping[str, Tensor],
    arch: str | None,
    stated: str | None,
    closest: str,
    fit: float,
) -> Problem:
    right = f"give --arch {closest}" if arch else "fetch config and tensors again"
    return Problem(
        "the tensors are those of no architecture here"
        if stated is None
        else f"the tensors are not those of {stated}",
        where=str(contents.path),
        why="it holds:\n"
        + table.listing([str(t) for t in found.values()])
        + (f"\nclosest is {closest}: {fit:.0%} of names fit" if fit else ""),
        fix=f"they are those of {closest}: {right}"
        if stated and fit >= 0.5
        else f"known architectures: {', '.join(jaxmodels.ARCHS)}",
        exit_code=MISMATCH,
    )


def drop_ties(package: Any, rows: Rows, found: dict[str, Tensor], where: Path) -> list[str]:
    """Takes out tensors that must repeat another one, and says so.

    Raises:
        Problem: (mismatch) one does not.
    """
    notes = []
    for name, path in getattr(package, "TIED", ()):
        original = table.pairs(rows, [path])[0].theirs
        if name not in found or original not in found:
            continue
        copy, model = found.pop(name), found[original]
        if (copy.shape, copy.dtype) != (model.shape, model.dtype) or not np.array_equal(
            raw(copy.read()), raw(model.read())
        ):
            raise Problem(
                f"{name} is not the same as {original}",
                where=str(where),
                why=f"the model ties them; {name} is {copy.shape}, {original} is {model.shape}",
                fix="a model with a head of its own cannot be held here",
                exit_code=MISMATCH,
            )
        notes.append(f"{name} repeats {original}, to which it is tied")
    return notes
