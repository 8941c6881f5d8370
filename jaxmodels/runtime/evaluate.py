"""The mean loss, and the means of its metrics, over held-out batches."""

from collections.abc import Callable, Iterable
from math import exp, log
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmodels.architecture import Architecture
from jaxmodels.runtime.batches import grouped
from jaxmodels.runtime.means import Metrics, parted
from jaxmodels.runtime.paths import Arrays, GraphDef
from jaxmodels.runtime.sharding import ambient, put_whole

GROUP = 32
"""Rows that are compared with each other in an evaluation, however they come in batches."""


class Loss(NamedTuple):
    """A compiled deterministic loss."""

    function: Callable[..., tuple[Metrics, Metrics]]
    """(params, rest, batch) → scalars by name, "loss" (nats) and the metrics; and that part of
    each that is a mean over tokens (`means`), with their number under "tokens"."""
    compares: bool
    """Whether it compares the rows of a batch with each other."""


def loss_function(package: Architecture, graphdef: GraphDef, mesh: Mesh | None = None) -> Loss:
    """The loss of a package, as `evaluate` takes it.

    The mesh is that of the parameters; none is needed where they lie on one device. Batches are
    of arrays on the host, which every process has whole.
    """

    def numbers(
        params: Arrays, model_state: Arrays, batch: dict[str, Any]
    ) -> tuple[Metrics, Metrics]:
        value, aux = package.loss(graphdef.merge(params, model_state), batch, None)
        told, by_tokens, _ = parted(aux)
        if by_tokens and package.counted is not None:
            by_tokens = by_tokens | {"tokens": package.counted(batch)}
        return told | {"loss": value}, by_tokens

    compiled = jax.jit(ambient(mesh, numbers) if mesh else numbers)

    def function(
        params: Arrays, model_state: Arrays, batch: dict[str, Any]
    ) -> tuple[Metrics, Metrics]:
        placed = put_whole(batch, mesh) if mesh else batch
        found: tuple[Metrics, Metrics] = compiled(params, model_state, placed)
        return found

    return Loss(function, package.CROSS_ROW_LOSS)


def evaluate(
    loss: Loss,
    params: Arrays,
    model_state: Arrays,
    batches: Iterable[dict[str, Any]],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over all rows of the batches, loss first; None when `stop` asked to end early.

    What is a mean over tokens is so over those of all batches, and a loss that compares rows gets
    them in groups of `GROUP`: no number depends on how the rows are cut into batches. Of a
    perplexity the logarithm is averaged: it is e to the power of a mean loss.
    """
    by_rows: dict[str, float] = {}
    by_tokens: dict[str, float] = {}
    rows = tokens = 0
    for batch in grouped(batches, GROUP) if loss.compares else batches:
        if stop():
            return None
        size = batch["tokens"].shape[0]
        numbers, parts = loss.function(params, model_state, batch)
        count = int(parts.get("tokens", 0))
        for name, value in numbers.items():
            part = _averaged(name, parts[name]) if name in parts else 0.0
            other = _averaged(name, value) - part
            by_rows[name] = by_rows.get(name, 0.0) + other * size
            by_tokens[name] = by_tokens.get(name, 0.0) + part * count
        rows, tokens = rows + size, tokens + count
    means = {name: x / rows + by_tokens[name] / max(tokens, 1) for name, x in by_rows.items()}
    if "perplexity" in means:
        means["perplexity"] = exp(min(means["perplexity"], 700.0))
    return {"loss": means.pop("loss"), **means}


def _averaged(name: str, value: Any) -> float:
    return log(float(value)) if name == "perplexity" else float(value)


def report(loss: float, tokens: int, characters: int | None = None) -> dict[str, float]:
    """Loss in nats with what follows from it: perplexity, bits per token and per character.

    Args:
        loss: mean over tokens.
        tokens: how many were measured.
        characters: how many characters they write, if that is known.
    """
    written = {"bits_per_character": loss * tokens / log(2) / characters} if characters else {}
    return written | {
        "loss": loss,
        "perplexity": exp(min(loss, 700.0)),
        "bits_per_token": loss / log(2),
        "tokens": tokens,
    }
