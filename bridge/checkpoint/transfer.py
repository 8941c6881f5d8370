"""What a checkpoint of one architecture gives to a model of another, and the tower inside of one.

A package says it in `INIT_FROM`: architecture → rows (our path pattern, their path pattern). A star
that ends theirs stands for what the star at the end of ours does. What has the same shape on both
sides is carried, and everything else of the new model begins as it would.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint, preset_of
from bridge.core.moments import Moments
from bridge.core.table import Shape, fill
from bridge.core.tensors import Tensor
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.paths import pattern


def rows_between(package: Any, source: Checkpoint) -> tuple[tuple[str, str], ...] | None:
    """The rows by which a source of another architecture is carried over; None without any."""
    return package.INIT_FROM.get(source.arch)


def part_of(source: Checkpoint, arch: str) -> Checkpoint:
    """The model of an architecture that is a part of the source's, as a source itself.

    The source itself where it is of this architecture, or has no such part.
    """
    package = jaxmodels.arch(source.arch)
    if source.arch not in jaxmodels.arch(arch).PART_OF:
        return source
    ((ours, _),) = package.INIT_FROM[arch]
    prefix, field = ours.removesuffix("*"), f"{arch}."
    config = getattr(source.config, arch)
    tensors = {p.removeprefix(prefix): t for p, t in source.tensors.items() if p.startswith(prefix)}

    def inside(held: dict[str, Tensor]) -> dict[str, Tensor]:
        return {p: replace(held[prefix + p], name=p) for p in tensors if prefix + p in held}

    def moments() -> Moments | None:
        held = source.moments()
        return held and held.mapped(inside)

    return replace(
        source,
        arch=arch,
        preset=preset_of(jaxmodels.arch(arch), config),
        config=config,
        assumed={k.removeprefix(field): v for k, v in source.assumed.items() if field in k},
        pairs=[
            pair._replace(ours=pair.ours.removeprefix(prefix))
            for pair in source.pairs
            if pair.ours.startswith(prefix)
        ],
        tensors={path: replace(tensor, name=path) for path, tensor in tensors.items()},
        state=frozenset(),
        tokenizer=None,
        carried={},
        packed={},
        notes=[
            *(note for note in source.notes if not note.startswith("assumed: ") or field in note),
            f"using the {arch} that is {prefix[:-1]!r} in a {source.arch}",
        ],
        moments=moments,
    )


def carried(
    package: Any, source: Checkpoint, shapes: Mapping[str, Shape]
) -> tuple[dict[str, Tensor], list[str]]:
    """Our path → tensor, unread, that the source gives; and notes.

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
