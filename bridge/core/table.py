"""The two-way engine: rows of a weight table become a checked one-to-one map of tensors.

A row is (our path pattern, their name pattern, op). `{i}` stands for the same number on both
sides. Rows are written once, from us to them; the other direction is derived.
"""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from bridge.core.ops import OPS
from bridge.core.tensors import Tensor
from jaxmodels.cli import visible
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.paths import pattern

Rows = tuple[tuple[str, str, str], ...]
Shape = tuple[int, ...]
SHOWN = 10
MISFIT = "the checkpoint does not fit the model"


class Pair(NamedTuple):
    """One parameter on both sides."""

    ours: str
    theirs: str
    op: str

    def export(self, tensor: Tensor) -> Tensor:
        """Our tensor as theirs, still unread."""
        op = OPS[self.op]
        shape, dtype = op.their_shape(tensor.shape), op.their_dtype(tensor.shape, tensor.dtype)
        return Tensor(self.theirs, shape, dtype, lambda: op.forward(tensor.read()))

    def their_shape(self, shape: Shape) -> Shape:
        """Shape on their side of a parameter that has this shape on ours."""
        return OPS[self.op].their_shape(shape)

    def load(self, tensor: Tensor, shape: Shape) -> Tensor:
        """Their tensor as ours, still unread; `shape` is ours, which theirs may not tell."""
        op = OPS[self.op]
        dtype = op.our_dtype(tensor.shape, tensor.dtype)
        return Tensor(self.ours, shape, dtype, lambda: op.inverse(tensor.read()).reshape(shape))


def fill(text: str, numbers: dict[str, str]) -> str:
    """ "blocks.{i}.norm" with {"i": "3"} → "blocks.3.norm"."""
    return re.sub(r"\{(\w+)\}", lambda found: numbers[found[1]], text)


def pairs(rows: Rows, paths: Iterable[str]) -> list[Pair]:
    """The map that the rows give for our parameters, in the order of the paths.

    Raises:
        Problem: (mismatch) a path that no row or several rows match, or several paths that
            become one name; all of them are listed.
    """
    result, complaints = [], []
    for path in paths:
        hits = [
            Pair(path, fill(theirs, found.groupdict()), op)
            for ours, theirs, op in rows
            if (found := pattern(ours).fullmatch(path))
        ]
        if len(hits) == 1:
            result.append(hits[0])
        else:
            to = f": {', '.join(hit.theirs for hit in hits)}" if hits else ""
            complaints.append(f"{path} is matched by {len(hits) or 'no'} rows{to}")
    names = Counter(pair.theirs for pair in result)
    complaints += [
        f"{name} stands for {count} parameters: "
        + ", ".join(pair.ours for pair in result if pair.theirs == name)
        for name, count in names.items()
        if count > 1
    ]
    if complaints:
        raise Problem(
            "the weight table is not one-to-one",
            why=listing(complaints),
            fix="every parameter needs exactly one row; correct the model's layout.py",
            exit_code=MISMATCH,
        )
    return result


def path_of(rows: Rows, name: str) -> tuple[str, str] | None:
    """Our path and the op of a tensor that the rows recognise by name: the derived direction."""
    for ours, theirs, op in rows:
        if match := pattern(theirs).fullmatch(name):
            return fill(ours, match.groupdict()), op
    return None


def ours_of(rows: Rows, found: dict[str, Shape]) -> dict[str, Shape]:
    """Our path → our shape of the tensors that the rows recognise by name.

    Used to find out what a checkpoint is before its sizes are known.
    """
    places = {name: path_of(rows, name) for name in found}
    return {
        place[0]: OPS[place[1]].our_shape(found[name]) for name, place in places.items() if place
    }


def in_order(rows: Rows, names: Iterable[str]) -> list[str]:
    """Names in the order of the rows; rows of a block in a row are repeated block by block."""
    groups: list[int] = []
    for number, (_, theirs, _) in enumerate(rows):
        same = number > 0 and ("{" in theirs) and ("{" in rows[number - 1][1])
        groups.append(groups[-1] if same else number)

    def place(name: str) -> tuple[int, tuple[int, ...], int]:
        for number, (_, theirs, _) in enumerate(rows):
            if match := pattern(theirs).fullmatch(name):
                return groups[number], tuple(int(n) for n in match.groups()), number
        return len(rows), (), 0

    return sorted(names, key=place)


def coverage(rows: Rows, names: Iterable[str]) -> float:
    """How well a table fits names: 1 when every name matches a row and every row a name.

    Rows of biases that match nothing do not count: a model may be made without them.
    """
    names = list(names)
    if not names:
        return 0.0
    by_end = defaultdict(list)  # most rows are compared with few of many names
    for name in names:
        by_end[name.rpartition(".")[2]].append(name)
    hits = {}
    for ours, theirs, _ in rows:
        end = theirs.rpartition(".")[2]
        near = names if {"{", "*"} & {*end} else by_end.get(end, [])
        hits[ours, theirs] = [name for name in near if pattern(theirs).fullmatch(name)]
    matched = {name for found in hits.values() for name in found}
    needed = [key for key, found in hits.items() if found or not key[0].endswith("/bias")]
    if not needed:
        return 0.0
    used = sum(bool(hits[key]) for key in needed)
    return len(matched) / len(names) * used / len(needed)


def check(
    expected: list[Pair], ours: dict[str, Shape], found: dict[str, Shape], where: str
) -> None:
    """Checks that a checkpoint holds exactly what the model needs.

    Args:
        expected: the map, from `pairs`.
        ours: our path → shape of every parameter of the model.
        found: their name → shape of every tensor of the checkpoint.
        where: the checkpoint, for the message.

    Raises:
        Problem: (mismatch) tensors are missing, unexpected or of another shape; all of them are
            listed, each with its shape.
    """
    wanted = {pair.theirs: pair.their_shape(ours[pair.ours]) for pair in expected}
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [name for name in wanted if name in found and wanted[name] != found[name]]
    if not (missing or extra or wrong):
        return
    parts = []
    if missing:
        lines = [f"{name}  {wanted[name]}" for name in missing]
        parts.append(f"missing, {len(missing)} of {len(wanted)} tensors:\n{listing(lines)}")
    if extra:
        lines = [f"{name}  {found[name]}{_near(name, missing)}" for name in extra]
        parts.append(f"unexpected, {len(extra)} tensors:\n{listing(lines)}")
    if wrong:
        lines = [
            f"{name}  is {found[name]}, must be {wanted[name]}{_turned(found[name], wanted[name])}"
            for name in wrong
        ]
        parts.append(f"wrong shape, {len(wrong)} tensors:\n{listing(lines)}")
    raise Problem(
        MISFIT,
        where=where,
        why="\n".join(parts),
        fix=_advice(missing, extra),
        exit_code=MISMATCH,
    )


def listing(lines: list[str]) -> str:
    """The first ten lines, indented, and how many more there are."""
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {visible(line)}" for line in lines[:SHOWN] + more)


def _near(name: str, missing: list[str]) -> str:
    near = difflib.get_close_matches(name, missing, n=1, cutoff=0.8)
    return f"  (is it {near[0]}?)" if near else ""


def _turned(found: Shape, wanted: Shape) -> str:
    return "; a transpose would fit" if found == wanted[::-1] else ""


def _advice(missing: list[str], extra: list[str]) -> str:
    if missing and not extra:
        return "the file is incomplete: fetch or save it again"
    if extra and not missing:
        return "remove the unexpected tensors, or give the right --arch and --set"
    return "is this the right architecture and version? see `jaxmodels inspect PATH --tensors`"
