"""The mean loss, and the means of its metrics, over held-out batches.

A loss that compares the rows of a batch (contrastive, matching, a memory, 8-bit scales) gets them
in groups of 32 however they come in batches; otherwise the result, and with it the choice of the
best checkpoint, would depend on `--batch`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from math import exp, log
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmodels.architecture import Architecture
from jaxmodels.runtime.aggregate import Metrics, split_aux
from jaxmodels.runtime.batches import compares_rows, regroup
from jaxmodels.runtime.paths import Arrays, GraphDef
from jaxmodels.runtime.sharding import put_global, with_mesh

GROUP = 32
"""Rows that an evaluation compares with each other."""


class Loss(NamedTuple):
    """A compiled deterministic loss."""

    function: Callable[..., tuple[Metrics, Metrics]]
    """(params, model_state, batch) → scalars by name, "loss" (nats) and the metrics; and the part
    of each that is a mean over tokens (see `aggregate`), with their number under "tokens"."""
    compares_rows: Callable[[dict[str, Any]], bool]
    """Whether it compares the rows of a batch with each other."""


def loss_function(package: Architecture, graphdef: GraphDef, mesh: Mesh | None = None) -> Loss:
    """The loss of an architecture, as `evaluate` takes it.

    `mesh` is that of the parameters; None if they are on one device. Batches are host arrays, the
    same in every process.
    """

    def numbers(
        params: Arrays, model_state: Arrays, batch: dict[str, Any]
    ) -> tuple[Metrics, Metrics]:
        value, aux = package.loss(graphdef.merge(params, model_state), batch, None)
        metrics, by_tokens, _ = split_aux(aux)
        if by_tokens and package.counted is not None:
            by_tokens = by_tokens | {"tokens": package.counted(batch)}
        return metrics | {"loss": value}, by_tokens

    compiled = jax.jit(with_mesh(mesh, numbers) if mesh else numbers)

    def function(
        params: Arrays, model_state: Arrays, batch: dict[str, Any]
    ) -> tuple[Metrics, Metrics]:
        placed = put_global(batch, mesh) if mesh else batch
        found: tuple[Metrics, Metrics] = compiled(params, model_state, placed)
        return found

    return Loss(function, partial(compares_rows, package))


def evaluate(
    loss: Loss,
    params: Arrays,
    model_state: Arrays,
    batches: Iterable[dict[str, Any]],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over all rows of the batches, loss first; None when `stop` asked to end early.

    Of a mixture (`batches.parts`: name, share and batches of each source) it is the mean of its
    sources', by their shares, and `loss/NAME` is the loss of each. A metric that only some have is
    a mean over these.

    Means over tokens are taken over the tokens of all batches, and a loss that compares rows gets
    groups of `GROUP`, so no number depends on the batch size. A perplexity is averaged by its
    logarithm, a mean loss.
    """
    means: dict[str, float] = {}
    weights: dict[str, float] = {}
    by_source: dict[str, float] = {}
    for source, share, part in getattr(batches, "parts", None) or [("", 1.0, batches)]:
        found = _means(loss, params, model_state, part, stop)
        if found is None:
            return None
        by_source[f"loss/{source}"] = found["loss"]
        for name, value in found.items():
            means[name] = means.get(name, 0.0) + share * value
            weights[name] = weights.get(name, 0.0) + share
    means = {name: total / weights[name] for name, total in means.items()}
    if "perplexity" in means:
        means["perplexity"] = exp(min(means["perplexity"], 700.0))
    return {"loss": means.pop("loss"), **means, **(by_source if len(by_source) > 1 else {})}


def _means(
    loss: Loss,
    params: Arrays,
    model_state: Arrays,
    batches: Iterable[dict[str, Any]],
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """As `evaluate`, of one source, with the logarithm of a perplexity.

    Where batches of several kinds take turns, a metric is a mean over the rows that have it.
    """
    by_rows: dict[str, float] = {}
    by_tokens: dict[str, float] = {}
    rows: dict[str, int] = {}
    tokens = 0
    for batch in regroup(batches, GROUP, loss.compares_rows):
        if stop():
            return None
        size = batch["tokens"].shape[0]
        numbers, parts = loss.function(params, model_state, batch)
        count = int(parts.get("tokens", 0))
        for name, value in numbers.items():
            part = _additive(name, parts[name]) if name in parts else 0.0
            other = _additive(name, value) - part
            by_rows[name] = by_rows.get(name, 0.0) + other * size
            by_tokens[name] = by_tokens.get(name, 0.0) + part * count
            rows[name] = rows.get(name, 0) + size
        tokens += count
    return {name: x / rows[name] + by_tokens[name] / max(tokens, 1) for name, x in by_rows.items()}


def _additive(name: str, value: Any) -> float:
    return log(float(value)) if name == "perplexity" else float(value)


def report(loss: float, tokens: int, characters: int | float | None = None) -> dict[str, float]:
    """The loss in nats, and derived from it perplexity, bits per token and per character.

    Args:
        loss: mean over tokens.
        tokens: number of tokens measured.
        characters: number of characters that they decode to, if known.
    """
    per_character = (
        {"bits_per_character": loss * tokens / log(2) / characters} if characters else {}
    )
    return per_character | {
        "loss": loss,
        "perplexity": exp(min(loss, 700.0)),
        "bits_per_token": loss / log(2),
        "tokens": tokens,
    }
