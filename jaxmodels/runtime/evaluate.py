"""The mean loss over held-out batches."""

from collections.abc import Callable, Iterable
from math import exp, log
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from jaxmodels.runtime.paths import Arrays, Skeleton
from jaxmodels.runtime.sharding import ambient


def loss_function(
    package: ModuleType, skeleton: Skeleton, mesh: Mesh | None = None
) -> Callable[..., jax.Array]:
    """The compiled deterministic loss (params, rest, batch) → scalar in nats.

    The mesh is that of the parameters; none is needed where they lie on one device.
    """

    def loss(params: Arrays, rest: Arrays, batch: dict[str, Any]) -> jax.Array:
        return package.loss(skeleton.merge(params, rest), batch, None)[0]

    return jax.jit(ambient(mesh, loss) if mesh else loss)


def evaluate(
    loss: Callable[..., jax.Array],
    params: Arrays,
    rest: Arrays,
    batches: Iterable[dict[str, Any]],
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss over all rows of the batches; None when `stop` asked to end early."""
    total, rows = 0.0, 0
    for batch in batches:
        if stop():
            return None
        size = next(iter(batch.values())).shape[0]
        total += float(loss(params, rest, batch)) * size
        rows += size
    return total / rows


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
