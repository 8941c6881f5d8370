"""A checkpoint as a model: which architecture, which sizes, and every tensor under our paths."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jaxmodels
from bridge.checkpoint import averages, vocabulary
from bridge.checkpoint.adapted import adapted, check_base
from bridge.checkpoint.checkpoint import Checkpoint, preset_of
from bridge.checkpoint.matching import (
    candidate_tables,
    check_numbers,
    check_plain,
    drop_ties,
    leave_buffers,
    leave_other_heads,
)
from bridge.checkpoint.settling import Given, settle, trim
from bridge.checkpoint.zeros import with_unread
from bridge.core import fused_tensors, table
from bridge.core.moments import Moments
from bridge.core.state import begun, state_shapes
from bridge.core.table import Pair, Rows, Shape
from bridge.core.tensors import Tensor
from bridge.formats import recognise
from bridge.formats.raw import RawCheckpoint
from bridge.formats.tokenizer import padding_notes
from bridge.formats.wrappers import CHOICE, unwrapped
from bridge.storage.stacks import unstack_blocks
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.reading import MAX_JSON, read_limited
from jaxmodels.runtime.manifest import MANIFEST
from jaxmodels.sizes import parameter_shapes

# nnx's random streams, in the state of any model: no parameters.
_STREAMS = re.compile(r"(.*\.)?rngs\..*")


def open_checkpoint(
    path: str | Path,
    arch: str | None = None,
    config: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> Checkpoint:
    """Opens a checkpoint in any format that is known, and checks it against its model.

    Args:
        path: a file or folder; see `bridge.formats.FORMATS`.
        arch: the architecture, if the files do not say it and it should not be guessed.
        config: fields that the files cannot say, such as {"heads": 4}.
        weights: of a run, "ema", the running average that it keeps, or "raw", what it trains;
            None: the average, where one is kept.

    Raises:
        Problem: (corrupt) unreadable; (mismatch) the tensors are not those of the model;
            (usage) unknown architecture or field, or there is no such average.
    """
    return bind(recognise(Path(path)), arch, averages.chosen(config, weights))


def bind(
    contents: RawCheckpoint,
    arch: str | None = None,
    config: Mapping[str, Any] | None = None,
    conventions: Mapping[str, Any] | None = None,
    otherwise: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Gives the tensors of recognised contents their places in a model; see `open_checkpoint`.

    Args:
        contents: what a format found.
        arch: the architecture, if the files do not say it and it should not be guessed.
        config: fields that the files cannot say, and the choice of a model and its weights.
        conventions: values in the place of the architecture's own for fields to be assumed.
        otherwise: values for fields that nothing determines and that have no convention: those of
            the model of which this is a copy.
    """
    if contents.damaged:
        raise Problem(
            "the files are not what their manifest promises",
            where=str(contents.path),
            why="\n".join(contents.damaged),
            fix=f"fetch or convert the model again; if you changed them, remove {MANIFEST}",
            exit_code=CORRUPT,
        )
    contents = unwrapped(averages.weighted(contents, config or {}), arch, config or {})
    choices = (CHOICE, averages.CHOICE)
    config = {name: value for name, value in (config or {}).items() if name not in choices}
    adapters = None
    if contents.base is not None:
        check_base(contents.base, str(contents.path))
        contents, adapters = adapted(contents, bind(recognise(contents.base.path)))
    check_plain(contents.tensors, contents.path)
    found = {n: tensor for n, tensor in contents.tensors.items() if not _STREAMS.fullmatch(n)}
    found = unstack_blocks(found, arch or contents.arch)
    given = Given(config, conventions or {}, otherwise or {})
    name, candidates = candidate_tables(contents, found, arch)
    leave_buffers(jaxmodels.arch(name), found, contents.path)
    dropped = [n for n in contents.tensors if n not in found]
    notes = [*contents.notes, *(f"dropped: {n}, no parameter" for n in dropped)]
    problems = []
    for candidate in candidates:
        try:
            source = _bind(contents, name, candidate, dict(found), given)
        except Problem as problem:
            problems.append(problem)
        else:
            source.notes[:0] = notes
            source.adapters = adapters
            return source
    # Of tables that differ in layout only, the best fit gives the best error message.
    misfits = [problem for problem in problems if problem.what == table.MISFIT]
    raise min(misfits, key=lambda problem: problem.why.count("\n"), default=problems[0])


def _bind(
    contents: RawCheckpoint,
    arch: str,
    labelled: tuple[str, Rows],
    found: dict[str, Tensor],
    given: Given,
) -> Checkpoint:
    """`bind` by one table, with its name, of one architecture."""
    package, (label, rows) = jaxmodels.arch(arch), labelled
    found |= {n: t for n, t in contents.state.items() if table.path_of(rows, n)}
    found = fused_tensors.split(rows, found)
    notes = leave_other_heads(package, found) + drop_ties(package, rows, found, contents.path)
    settled = settle(arch, contents, label, rows, found, given)
    config, found, more = trim(arch, rows, settled.config, found)
    notes += more
    places = _places(arch, rows, config, found, contents.path)
    tokenizer, more = vocabulary.choose(config, settled.beside, contents.path)
    notes += [*places.notes, *more]
    notes += [f"assumed: {name} = {value}" for name, value in settled.assumed.items()]
    preset = contents.preset or preset_of(package, config)
    pairs, fused = places.pairs, fused_tensors.fused_name
    beside = contents.path if contents.path.is_dir() else None
    return Checkpoint(
        path=contents.path,
        format=contents.format,
        arch=arch,
        preset=preset if preset in package.PRESETS else None,
        config=config,
        assumed=settled.assumed,
        unsaid=settled.unsaid,
        pairs=pairs,
        tensors=places.tensors,
        state=frozenset(places.state),
        quantised=frozenset(p.ours for p in pairs if fused(p.theirs) in contents.quantised),
        packed={p.ours: contents.packed[p.theirs] for p in pairs if p.theirs in contents.packed},
        tokenizer=tokenizer,
        carried={} if beside is None else _carried(package, beside),
        origin=vocabulary.with_reason(contents.origin, config, settled.beside, tokenizer),
        notes=notes + padding_notes(config),
        moments=lambda: _moments(contents, rows, places),
    )


def _carried(package: Any, folder: Path) -> dict[str, bytes]:
    """The files in a folder that go along with a model of the architecture."""
    files = (folder / name for name in package.CARRIED)
    return {file.name: read_limited(file, MAX_JSON) for file in files if file.is_file()}


class _Places(NamedTuple):
    """Where the tensors of a checkpoint belong in a model."""

    pairs: list[Pair]
    tensors: dict[str, Tensor]
    """Our path → tensor, in our layout."""
    trained: dict[str, Shape]
    """Our path → shape of every parameter."""
    state: dict[str, Shape]
    """The same of state (`bridge/core/state.py`)."""
    notes: list[str]


def _places(arch: str, rows: Rows, config: Any, found: dict[str, Tensor], where: Path) -> _Places:
    """Gives every tensor its place, and every place its tensor."""
    notes = []
    trained, state = parameter_shapes(arch, config), state_shapes(arch, config)
    if begins := bool(state) and not any(p.theirs in found for p in table.pairs(rows, state)):
        notes.append("queues, counters and the like are missing: they begin as in a new model")
    shapes = trained if begins else trained | state
    pairs = table.pairs(rows, shapes)
    notes += with_unread(jaxmodels.arch(arch), pairs, shapes, found)
    table.check(pairs, shapes, {n: t.shape for n, t in found.items()}, str(where))
    check_numbers([found[pair.theirs] for pair in pairs if pair.ours in trained], where)
    tensors = {p.ours: p.load(found[p.theirs], shapes[p.ours]) for p in pairs}
    new = begun(arch, config) if begins else {}
    return _Places(pairs, tensors | new, trained, state, notes)


def _moments(contents: RawCheckpoint, rows: Rows, places: _Places) -> Moments | None:
    """AdamW's state under our paths."""
    if (moments := contents.moments()) is None:
        return None
    moments = moments.mapped(
        lambda held: fused_tensors.split(rows, unstack_blocks(held, contents.arch))
    )
    trained = [pair for pair in places.pairs if pair.ours in places.trained]
    return moments.bound(trained, places.trained, str(contents.path))
