"""The optimiser of a recipe: clipping, AdamW, linear warm-up and cosine decay (optax)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmodels.recipe import Optim
from jaxmodels.runtime.paths import Arrays, pattern


def schedule(optim: Optim, steps: int) -> optax.Schedule:
    """Learning rate by step: init → peak over the warm-up, then a cosine to end at `steps`.

    The seeds hand optax `decay_steps = steps − warmup`, which optax takes to include the
    warm-up, so their cosine ends a warm-up early; here it ends with the run.
    """
    warmup = int(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)
    return optax.warmup_cosine_decay_schedule(
        optim.init_lr, optim.peak_lr, min(warmup, steps - 1), steps, optim.end_lr
    )


def optimiser(optim: Optim, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW with clipping by global norm, over parameters given as path → array."""

    def decayed(params):
        return {
            path: not any(pattern(text).fullmatch(path) for text in optim.no_decay)
            for path in params
        }

    adamw = optax.adamw(
        rate, optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay, mask=decayed
    )
    return optax.chain(optax.clip_by_global_norm(optim.clip), adamw) if optim.clip else adamw


def with_moments(opt: Any, count: int, mu: Arrays, nu: Arrays) -> Any:
    """The state of `optimiser` with AdamW's own part replaced.

    Args:
        opt: a state; its count of schedule steps stays.
        count: updates that the moments have seen.
        mu: path → running mean of the gradient, float32.
        nu: path → running mean of its square, float32.
    """

    def one(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByAdamState):
            return part
        seen = jax.device_put(jnp.asarray(count, part.count.dtype), part.count.sharding)
        return part._replace(count=seen, mu=mu, nu=nu)

    return jax.tree.map(one, opt, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))
