"""Settles the Config of a checkpoint: from its files, its shapes, `--set`, and conventions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jaxmodels
from bridge.checkpoint.config import check_known, fields_of, make_config, overrides_of
from bridge.checkpoint.vocabulary import Beside, beside
from bridge.checkpoint.zeros import unfilled
from bridge.core.state import unnamed
from bridge.core.table import Rows
from bridge.core.tensors import Tensor
from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import CORRUPT, USAGE


class Given(NamedTuple):
    """What is known of a model besides its files; see `bridge.checkpoint.opening.bind`."""

    config: Mapping[str, Any]
    conventions: Mapping[str, Any]
    otherwise: Mapping[str, Any]


@dataclass
class Settled:
    """The Config, and what it was made of."""

    config: Any
    assumed: dict[str, Any]
    """Fields that neither files nor shapes nor `--set` give."""
    unsaid: frozenset[str]
    """Those of them that have no convention and come from `otherwise`."""
    beside: Beside
    """The tokeniser that comes with the tensors."""


def settle(
    arch: str,
    contents: RawCheckpoint,
    label: str,
    rows: Rows,
    found: Mapping[str, Tensor],
    given: Given,
) -> Settled:
    """The Config of a checkpoint that follows a table.

    Args:
        arch: the architecture.
        contents: what a format found.
        label: the table's name.
        rows: the table.
        found: the table's name → tensor.
        given: what is known besides.

    Raises:
        Problem: (mismatch) files and shapes contradict each other, or do not say enough; (usage)
            a field that was given is none.
    """
    package = jaxmodels.arch(arch)
    overrides = overrides_of(package, arch, given.config)
    known, assumed = fields_of(package, contents, label, rows, found, overrides)
    assumed = {name: given.conventions.get(name, value) for name, value in assumed.items()}
    unsaid = {name for name, value in assumed.items() if value is None and name in given.otherwise}
    assumed |= {name: given.otherwise[name] for name in unsaid}
    there = beside(contents, known.get("vocab"))
    if "tokens" in assumed and (there.tokenizer or there.unread or contents.of_text):
        # Only a tokeniser can tell rows that stand for no token, or a format's own convention.
        del assumed["tokens"]
        known["tokens"] = there.tokenizer.vocab_size if there.tokenizer else known["vocab"]
    values = {**assumed, **known, **overrides}
    check_known(package, {name: values[name] for name in assumed}, values, contents.path)
    config = make_config(package, values, USAGE if overrides else CORRUPT, contents.path)
    left = {name: value for name, value in assumed.items() if name not in overrides}
    return Settled(config, left, frozenset(unsaid), there)


def trim(
    arch: str, rows: Rows, config: Any, found: Mapping[str, Tensor]
) -> tuple[Any, dict[str, Tensor], list[str]]:
    """Leaves out the zeros that PyTorch's class adds, and state that no table names.

    Returns:
        the Config, in which such parameters are the model's own if they are no longer zeros; the
        tensors that stay (their name → tensor); notes.
    """
    trimmed, kept = unfilled(arch, rows, config, dict(found))
    notes = []
    if trimmed != config:
        notes.append("biases that were zeros are so no longer: they are the model's now")
    new = [n for n in kept if n.replace(".", "/") in unnamed(arch, trimmed)]
    notes += [f"left aside: {n}, which begins anew with every model" for n in new]
    return trimmed, {n: tensor for n, tensor in kept.items() if n not in new}, notes
