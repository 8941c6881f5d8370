"""Finds the model in an Orbax tree, which may hold a whole training state.

Known are `{params}`, linen's `{params: {params}}`, `{params, opt_state, step}` of flax's
TrainState, `{model, optimizer}` and whole optimisers of nnx, tuples and dicts of the states that
`nnx.split` returns, with random keys and averages beside them. A subtree is the model if its names
fit a table of some architecture, unless it belongs to an optimiser, whose state has the same names.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import jaxmodels
from bridge.core import fused_tensors, table
from bridge.core.layouts import tables
from bridge.core.moments import Moments, count_of
from bridge.core.table import listing
from bridge.core.tensors import Tensor
from bridge.storage.stacks import unstack_blocks
from jaxmodels.errors import MISMATCH, Problem

FITS = 0.5  # share of names, as in bridge/checkpoint/matching.py
DEPTH = 6
# Nothing below is a model.
_MOMENTS = re.compile(
    r"(opt|optim|optimi[sz]er)_?states?|mu|nu|nu_max|trace|[mv]|v_row|v_col|(acc_)?grad(ient)?s?"
)
# Nothing below is a model, except `model`: nnx's optimisers used to contain theirs.
_OPTIMIZER = re.compile(r"opt|optim|optimi[sz]er|tx")
_AVERAGE = re.compile(r".*(ema|average|avg|polyak|shadow|best|initial).*")
_USUAL = ("params", "model", "model_state", "state", "default", "pytree")
_MOMENT = re.compile(r"(?P<place>(?:[^.]+\.)*?)(?P<field>mu|nu)\.(?P<path>.+)")
Words = tuple[str, ...]


class _Place(NamedTuple):
    """A subtree that is a model."""

    node: Words
    separate: bool
    """Whether the model is split into several states, the children of the node."""
    fit: float

    def names(self, words: Mapping[str, Words]) -> dict[str, str]:
        """Name in the tree → name in the model."""
        depth = len(self.node)
        below = {name: keys[depth:] for name, keys in words.items() if keys[:depth] == self.node}
        if self.separate:
            below = {n: keys[1:] for n, keys in below.items() if _part(keys)}
        return {name: ".".join(keys) for name, keys in below.items()}


def model_in(
    tensors: Mapping[str, Tensor], where: Path
) -> tuple[str, dict[str, Tensor], list[str]]:
    """The prefix of the model's names ("" or with a dot), its tensors without it, and notes.

    All tensors if no subtree is a model; checking their names will report it.

    Raises:
        Problem: (mismatch) there are several models, or an optimiser's state alone.
    """
    words = {name: tuple(name.split(".")) for name in tensors}
    found = _models((), list(words.values()))
    if not found:
        if any(_MOMENT.fullmatch(name) for name in tensors):
            raise _no_parameters(tensors, where)
        return "", dict(tensors), []
    place = _preferred(found, where)
    names = place.names(words)
    node = ".".join(place.node)
    notes = [f"using {node!r} in the tree as the model"] if node else []
    if place.separate:
        notes.append("parts of the model that were saved separately were joined")
    notes += _left([keys for name, keys in words.items() if name not in names], place.node)
    model = {new: replace(tensors[old], name=new) for old, new in names.items()}
    return f"{node}." if node else "", model, notes


def moments_in(tensors: Mapping[str, Tensor], prefix: str, where: Path) -> Moments | None:
    """The state of optax's AdamW, anywhere in the tree, under the model's names there.

    None if there is none, if there are several that are not parts of one, or if by its names the
    state is of another optimiser.
    """
    held: dict[str, dict[str, Tensor]] = {"mu": {}, "nu": {}}
    places = set()
    for name, tensor in tensors.items():
        if name.startswith(prefix) and prefix:
            continue
        if re.search(r"(^|\.)(nu_max|trace)\.", name):
            return None
        if match := _MOMENT.fullmatch(name):
            places.add(match["place"])
            if match["path"] in held[match["field"]]:
                return None
            held[match["field"]][match["path"]] = tensor
    counts = {place: tensors.get(f"{place}count") for place in places}
    if not places or held["mu"].keys() != held["nu"].keys() or None in counts.values():
        return None
    numbers = {count_of(count, f"{where}: {place}count") for place, count in counts.items()}
    if len(numbers) > 1:
        return None
    # The optimiser was made for `{params: …}`, or for the tree inside of it.
    keys = prefix.split(".")[:-1]
    starts = [".".join(keys[i:]) + "." for i in range(len(keys))]
    start = next((s for s in starts if all(name.startswith(s) for name in held["mu"])), "")
    mu, nu = ({n.removeprefix(start): t for n, t in held[f].items()} for f in ("mu", "nu"))
    return Moments(numbers.pop(), mu, nu)


def _models(node: Words, names: list[Words], optimizer: bool = False) -> list[_Place]:
    """The subtrees that are models, the outermost only (a bitgen contains a dinov2).

    Args:
        node: path in the whole tree.
        names: of the arrays below, relative to the node.
        optimizer: whether it belongs to an optimiser.
    """
    if len(node) > DEPTH:
        return []
    if not optimizer and (fit := _fit(names)) >= FITS:
        return [_Place(node, False, fit)]
    groups: dict[str, list[Words]] = {}
    for first, *rest in names:
        if rest and not _MOMENTS.fullmatch(first):
            groups.setdefault(first, []).append(tuple(rest))
    below = []
    for word, held in groups.items():
        of_optimizer = word != "model" and (optimizer or bool(_OPTIMIZER.fullmatch(word)))
        below += _models((*node, word), held, of_optimizer)
    together = [keys[1:] for keys in names if _part(keys)]
    if not optimizer and len(set(together)) == len(together):
        best = max((place.fit for place in below), default=0.0)
        if (fit := _fit(together)) >= FITS and fit > best:
            return [_Place(node, True, fit)]
    return below


def _part(keys: Words) -> bool:
    """Whether something may belong to a model whose states were saved side by side."""
    first, *rest = keys
    known = (_MOMENTS, _OPTIMIZER, _AVERAGE)
    return bool(rest) and not any(pattern.fullmatch(first) for pattern in known)


def _fit(names: Iterable[Words]) -> float:
    """How well names, split at dots, fit the best table of the best architecture."""
    found = {".".join(keys): _NOTHING for keys in names if "rngs" not in keys}
    if len(found) < 4:
        return 0.0
    best = 0.0
    for arch in jaxmodels.ARCHS:
        package = jaxmodels.arch(arch)
        ties = {tied for tied, _ in package.TIED}
        cut = [name for name in unstack_blocks(found, arch) if name not in ties]
        fits = (table.coverage(rows, fused_tensors.names(rows, cut)) for _, rows in tables(package))
        best = max(best, *fits)
    return best


def _preferred(found: list[_Place], where: Path) -> _Place:
    """The most likely model: not an average of weights, under a usual name, the outermost.

    Raises:
        Problem: (mismatch) several are equally likely.
    """
    plain = [p for p in found if not any(_AVERAGE.fullmatch(word) for word in p.node)] or found
    usual = [p for p in plain if p.node and p.node[-1] in _USUAL] or plain
    least = min(len(p.node) for p in usual)
    outermost = [p for p in usual if len(p.node) == least]
    if len(outermost) > 1:
        raise Problem(
            "the Orbax tree holds several models",
            where=str(where),
            why=listing([".".join(place.node) for place in found]),
            fix="save the one that you want separately",
            exit_code=MISMATCH,
        )
    return outermost[0]


def _left(others: list[Words], node: Words) -> list[str]:
    """What else the tree holds: one line for each subtree without any part of the model."""
    counts: Counter[str] = Counter()
    for keys in others:
        depth = next((i for i, word in enumerate(keys) if node[i : i + 1] != (word,)), 0)
        counts[".".join(keys[: depth + 1])] += 1
    sizes = {name: f" ({count} arrays)" if count > 1 else "" for name, count in counts.items()}
    return [f"left aside: {name}{size}" for name, size in sizes.items()]


def _no_parameters(tensors: Mapping[str, Tensor], where: Path) -> Problem:
    return Problem(
        "the Orbax tree holds an optimiser's state but no model",
        where=str(where),
        why="it holds:\n" + listing([str(tensor) for tensor in tensors.values()]),
        fix="save the model too: an nnx.Optimizer does not contain its parameters",
        exit_code=MISMATCH,
    )


_NOTHING = Tensor("", (1,), np.dtype(np.float32), lambda: np.zeros(1, np.float32))
