"""What a checkpoint of one architecture gives to a model of another.

A package says it in `CARRIED`: architecture → rows (our path pattern, their path pattern). A star
that ends theirs stands for what the star at the end of ours does. What has the same shape on both
sides is carried, and everything else of the new model begins as it would.
"""

from collections.abc import Mapping
from typing import Any

from bridge.sources import Source
from bridge.table import Shape, fill
from bridge.tensors import Tensor
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.paths import pattern


def rows_between(package: Any, source: Source) -> tuple[tuple[str, str], ...] | None:
    """The rows by which a source of another architecture is carried over; None without any."""
    return getattr(package, "CARRIED", {}).get(source.arch)


def carried(
    package: Any, source: Source, shapes: Mapping[str, Shape]
) -> tuple[dict[str, Tensor], list[str]]:
    """Our path → tensor, unread, of what the source gives; and what is to be said of it.

    Args:
        package: of the new model.
        source: a checkpoint of another architecture.
        shapes: our path → shape of every parameter of the new model.

    Raises:
        Problem: (mismatch) nothing at all fits.
    """
    rows = rows_between(package, source) or ()
    taken: dict[str, Tensor] = {}
    unlike = []
    for path, shape in shapes.items():
        theirs = _theirs(rows, path)
        if theirs is None or theirs not in source.tensors:
            continue
        if source.tensors[theirs].shape == shape:
            taken[path] = source.tensors[theirs]
        else:
            unlike.append(f"{path} is {shape} here, {source.tensors[theirs].shape} there")
    if not taken:
        raise Problem(
            f"nothing of this {source.arch} fits the model",
            where=str(source.path),
            why="\n".join(unlike[:5]),
            fix="choose a preset or sizes that are nearer to it",
            exit_code=MISMATCH,
        )
    numbers = sum(tensor.size for tensor in taken.values())
    used = {_theirs(rows, path) for path in taken}
    left = sorted({path.split("/")[0] for path in source.tensors if path not in used})
    new = sorted({path.split("/")[0] for path in shapes if path not in taken})
    notes = [
        f"{len(taken)} tensors ({numbers:,} numbers) come from {source.arch}: "
        + ", ".join(sorted({path.split("/")[0] for path in taken})),
        f"left there: {', '.join(left) or 'nothing'}",
        f"new here: {', '.join(new) or 'nothing'}",
    ]
    return taken, notes + unlike


def _theirs(rows: tuple[tuple[str, str], ...], path: str) -> str | None:
    for ours, theirs in rows:
        if match := pattern(ours).fullmatch(path):
            return fill(theirs, match.groupdict()).replace("*", path[ours.find("*") :])
    return None
