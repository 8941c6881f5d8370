"""The mean loss, and the means of its metrics, over held-out batches."""

from collections.abc import Callable, Iterable
from math import exp, log
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from jaxmodels.runtime.paths import Arrays, Skeleton
from jaxmodels.runtime.sharding import ambient
from jaxmodels.runtime.step import Metrics, parted


def loss_function(
    package: ModuleType, skeleton: Skeleton, mesh: Mesh | None = None
) -> Callable[..., Metrics]:
    """The compiled deterministic loss (params, rest, batch) → {"loss": nats, metric: …}, scalars.

    The mesh is that of the parameters; none is needed where they lie on one device.
    """

    def loss(params: Arrays, rest: Arrays, batch: dict[str, Any]) -> Metrics:
        value, aux = package.loss(skeleton.merge(params, rest), batch, None)
        return parted(aux)[0] | {"loss": value}

    return jax.jit(ambient(mesh, loss) if mesh else loss)


def evaluate(
    loss: Callable[..., Metrics],
    params: Arrays,
    rest: Arrays,
    batches: Iterable[dict[str, Any]],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over all rows of the batches, loss first; None when `stop` asked to end early.

    Of a perplexity the logarithm is averaged: it is e to the power of a mean loss.
    """
    total: dict[str, float] = {}
    rows = 0
    for batch in batches:
        if stop():
            return None
        size = batch["tokens"].shape[0]
        for name, value in loss(params, rest, batch).items():
            number = log(float(value)) if name == "perplexity" else float(value)
            total[name] = total.get(name, 0.0) + number * size
        rows += size
    means = {name: x / rows for name, x in total.items()}
    if "perplexity" in means:
        means["perplexity"] = exp(min(means["perplexity"], 700.0))
    return {"loss": means.pop("loss"), **means}


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
