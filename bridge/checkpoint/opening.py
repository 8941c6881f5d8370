"""A checkpoint as a model: which architecture, which sizes, and every tensor under our paths."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.checkpoint import averages
from bridge.checkpoint.config import check_known, fields_of, make_config, overrides_of
from bridge.checkpoint.matching import (
    candidate_tables,
    check_numbers,
    check_plain,
    drop_ties,
    leave_buffers,
    leave_other_heads,
)
from bridge.checkpoint.zeros import unfilled, with_unread
from bridge.core import fused_tensors, table
from bridge.core.moments import Moments
from bridge.core.state import begun, state_shapes, unnamed
from bridge.core.table import Pair, Rows, Shape
from bridge.core.tensors import Tensor
from bridge.formats import recognise
from bridge.formats.raw import RawCheckpoint
from bridge.formats.tokenizer import (
    NO_TOKENIZER,
    check_fits,
    check_size,
    padding_notes,
    tokenizer_by_convention,
)
from bridge.formats.wrappers import CHOICE, unwrapped
from bridge.storage.stacks import unstack_blocks
from data_pipelines.tokenizers import Tokenizer
from jaxmodels.errors import CORRUPT, USAGE, Problem
from jaxmodels.runtime.files import MANIFEST
from jaxmodels.sizes import parameter_shapes, vocab_used

# nnx's random streams, in the state of any model: no parameters.
_STREAMS = re.compile(r"(.*\.)?rngs\..*")


@dataclass
class Checkpoint:
    """A checkpoint that fits a model exactly; nothing of its values has been read yet."""

    path: Path
    format: str
    """As in `jaxmodels convert --to`; "torch" for a bare state dict."""
    arch: str
    preset: str | None
    config: Any
    """The model's Config."""
    assumed: dict[str, Any]
    """Fields of the config that the files do not say."""
    pairs: list[Pair]
    """The map between our paths and the names in the files."""
    tensors: dict[str, Tensor]
    """Our path → tensor, in our layout: parameters, and state that goes with them."""
    state: frozenset[str]
    """Those of our paths that are state (`bridge/core/state.py`)."""
    tokenizer: Tokenizer | None
    """The one beside the tensors, or else the convention's."""
    origin: dict[str, Any]
    """Step and metrics of a training run; see `RawCheckpoint`."""
    notes: list[str]
    unsaid: frozenset[str] = frozenset()
    """Those of the assumed fields that only the model whose copy this is tells; see `bind`."""
    quantised: frozenset[str] = frozenset()
    """Our paths whose tensors are Q8_0 in the file, in blocks along the last axis of their layout,
    and read as float32."""
    moments: Callable[[], Moments | None] = lambda: None
    """AdamW's state under our paths, unread; None where the files have none. Raises Problem
    (mismatch) when it is that of another model."""

    def shapes(self) -> dict[str, Shape]:
        """Our path → shape of every parameter."""
        return {p: tensor.shape for p, tensor in self.tensors.items() if p not in self.state}

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(tensor.size for p, tensor in self.tensors.items() if p not in self.state)


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

    `conventions` stand in for the architecture's own where a field must be assumed, `otherwise`
    where none of its own may be: fields of a model whose copy this is.
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
    check_plain(contents.tensors, contents.path)
    found = {n: tensor for n, tensor in contents.tensors.items() if not _STREAMS.fullmatch(n)}
    found = unstack_blocks(found, arch or contents.arch)
    name, candidates = candidate_tables(contents, found, arch)
    leave_buffers(jaxmodels.arch(name), found, contents.path)
    dropped = [n for n in contents.tensors if n not in found]
    notes = [*contents.notes, *(f"dropped: {n}, no parameter" for n in dropped)]
    problems = []
    for candidate in candidates:
        try:
            source = _bind(
                contents, name, candidate, dict(found), config, conventions or {}, otherwise or {}
            )
        except Problem as problem:
            problems.append(problem)
        else:
            source.notes[:0] = notes
            return source
    # Of tables that differ in layout only, the one that fits best tells best what is wrong.
    misfits = [problem for problem in problems if problem.what == table.MISFIT]
    raise min(misfits, key=lambda problem: problem.why.count("\n"), default=problems[0])


def _bind(
    contents: RawCheckpoint,
    name: str,
    labelled: tuple[str, Rows],
    found: dict[str, Tensor],
    config: Mapping[str, Any],
    conventions: Mapping[str, Any],
    otherwise: Mapping[str, Any],
) -> Checkpoint:
    """`bind` by one table, with its name, of one architecture."""
    package, (label, rows) = jaxmodels.arch(name), labelled
    found |= {n: t for n, t in contents.state.items() if table.path_of(rows, n)}
    found = fused_tensors.split(rows, found)
    notes = leave_other_heads(package, found) + drop_ties(package, rows, found, contents.path)
    overrides = overrides_of(package, name, config)
    known, assumed = fields_of(package, contents, label, rows, found, overrides)
    assumed = {field: conventions.get(field, value) for field, value in assumed.items()}
    unsaid = {field for field, value in assumed.items() if value is None and field in otherwise}
    assumed |= {field: otherwise[field] for field in unsaid}
    tokenizer, unread = _tokenizer_there(contents, known.get("vocab"))
    if "tokens" in assumed and (tokenizer or unread or contents.of_text):
        # Only a tokeniser can tell rows that stand for no token, or a format's own convention.
        assumed = {field: value for field, value in assumed.items() if field != "tokens"}
        known["tokens"] = tokenizer.vocab_size if tokenizer else known["vocab"]
    values = {**assumed, **known, **overrides}
    check_known(package, {field: values[field] for field in assumed}, values, contents.path)
    stated = make_config(package, values, USAGE if overrides else CORRUPT, contents.path)
    settings, found = unfilled(name, rows, stated, found)
    if settings != stated:
        notes.append("biases that were zeros are so no longer: they are the model's now")
    new = [n for n in found if n.replace(".", "/") in unnamed(name, settings)]
    found = {n: tensor for n, tensor in found.items() if n not in new}
    notes += [f"left aside: {n}, which begins anew with every model" for n in new]
    trained, state = parameter_shapes(name, settings), state_shapes(name, settings)
    if begins := bool(state) and not any(p.theirs in found for p in table.pairs(rows, state)):
        notes.append("queues, counters and the like are not there: they begin as a new model's")
    shapes = trained if begins else trained | state
    pairs = table.pairs(rows, shapes)
    notes += with_unread(package, pairs, shapes, found)
    table.check(pairs, shapes, {n: t.shape for n, t in found.items()}, str(contents.path))
    check_numbers([found[pair.theirs] for pair in pairs if pair.ours in trained], contents.path)
    tokenizer, said = _tokenizer_of(settings, tokenizer, unread, contents.path)
    notes += said
    origin = {key: value for key, value in contents.origin.items() if key != NO_TOKENIZER}
    origin |= (
        {NO_TOKENIZER: unread} if unread and vocab_used(settings) and tokenizer is None else {}
    )
    assumed = {field: value for field, value in assumed.items() if field not in overrides}
    notes += [f"assumed: {field} = {value}" for field, value in assumed.items()]
    notes += padding_notes(settings)
    preset = contents.preset or preset_of(package, settings)
    return Checkpoint(
        path=contents.path,
        format=contents.format,
        arch=name,
        preset=preset if preset in package.PRESETS else None,
        config=settings,
        assumed=assumed,
        unsaid=frozenset(unsaid),
        pairs=pairs,
        tensors={pair.ours: pair.load(found[pair.theirs], shapes[pair.ours]) for pair in pairs}
        | (begun(name, settings) if begins else {}),
        state=frozenset(state),
        quantised=frozenset(
            pair.ours for pair in pairs if fused_tensors.whole(pair.theirs) in contents.quantised
        ),
        tokenizer=tokenizer,
        origin=origin,
        notes=notes,
        moments=lambda: _moments(
            contents, rows, [pair for pair in pairs if pair.ours in trained], trained
        ),
    )


def _tokenizer_there(contents: RawCheckpoint, rows: Any) -> tuple[Tokenizer | None, str]:
    """The tokeniser that lies with the tensors, or why it is not taken.

    What lies beside a single file may be another model's.

    Raises:
        Problem: (mismatch) the embedding has fewer rows than it has tokens.
    """
    tokenizer = contents.tokenizer
    if tokenizer is None:
        return None, contents.unread
    own = contents.format == "gguf" or not contents.path.is_file()
    if not own and isinstance(rows, int) and tokenizer.vocab_size > rows:
        return None, f"it has {tokenizer.vocab_size} tokens, and the model {rows} rows for them"
    check_fits(tokenizer, rows, contents.path)
    return tokenizer, ""


def _tokenizer_of(
    config: Any, there: Tokenizer | None, unread: str, where: Path
) -> tuple[Tokenizer | None, list[str]]:
    """The tokeniser of a model: the one that lies there, or by convention; and what is to be said.

    Raises:
        Problem: (mismatch) it has not as many ids as the model uses.
    """
    if not vocab_used(config):
        return None, []
    if there is not None:
        check_size(there, config, where)
        return there, []
    if unread:
        return None, [f"the tokeniser that lies there is not taken: {unread}"]
    by_convention = tokenizer_by_convention(config)
    return by_convention, ["assumed: the tokeniser is GPT-2's"] if by_convention else []


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`--set` words as a config: ["heads=4"] → {"heads": 4}.

    Raises:
        Problem: (usage) a word is not NAME=VALUE.
    """
    result = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise Problem(
                f"--set cannot be {word!r}", fix="write NAME=VALUE, as heads=4", exit_code=USAGE
            )
        try:
            result[name] = json.loads(text)
        except ValueError:
            result[name] = text
    return result


def preset_of(package: Any, config: Any) -> str | None:
    """The preset that equals a config, if one does."""
    return next((name for name, preset in package.PRESETS.items() if preset == config), None)


def _moments(
    contents: RawCheckpoint, rows: Rows, pairs: list[Pair], shapes: dict[str, Shape]
) -> Moments | None:
    """AdamW's state under our paths."""
    if (moments := contents.moments()) is None:
        return None
    moments = moments.mapped(
        lambda held: fused_tensors.split(rows, unstack_blocks(held, contents.arch))
    )
    return moments.bound(pairs, shapes, str(contents.path))
