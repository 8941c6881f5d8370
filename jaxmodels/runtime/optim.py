"""The optimiser of a recipe: clipping, update rule, learning-rate schedule (optax).

The schedule depends on the settings and the step alone; with `schedule_steps` a decay that is done
stays done when `--steps` is raised. Frozen parameters (a factor of 0 in `lr_scale`) are left out of
the gradient altogether, so the backward pass of a frozen tower is never computed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.lora import is_adapter
from jaxmodels.runtime.muon import scale_by_muon
from jaxmodels.runtime.paths import Arrays, pattern


def schedule(optim: Optim, steps: int) -> optax.Schedule:
    """Learning rate by step: init → peak over the warm-up, then down to end at `steps` by
    `Optim.schedule`, but not below `min_lr`.

    The upstream programs pass optax `decay_steps = steps − warmup`, which by optax's definition
    includes the warm-up, so their cosine ends a warm-up early; here it ends with the run.
    """
    warmup = min(_length(optim.warmup, steps), steps - 1)
    if optim.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            optim.init_lr, optim.peak_lr, warmup, steps, optim.end_lr
        )
    else:
        decay = steps - warmup
        if optim.schedule == "wsd":
            decay = max(1, min(_length(optim.decay, steps), decay))
        up = optax.linear_schedule(optim.init_lr, optim.peak_lr, max(warmup, 1))
        stable = optax.constant_schedule(optim.peak_lr)
        down = optax.linear_schedule(optim.peak_lr, optim.end_lr, decay)
        rate = optax.join_schedules([up, stable, down], [warmup, steps - decay])
    if not optim.min_lr:
        return rate
    return lambda step: jnp.where(step < warmup, rate(step), jnp.maximum(rate(step), optim.min_lr))


def _length(part: float, steps: int) -> int:
    """A number of steps, given as such or as a fraction of all steps."""
    return int(part * steps) if part < 1 else int(part)


def optimiser(optim: Optim, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The recipe's optimiser with clipping by global norm, for the `trainable` parameters."""

    def decayed(params):
        return {
            path: not any(pattern(text).fullmatch(path) for text in optim.no_decay)
            for path in params
        }

    rule = optax.chain(
        _direction(optim),
        optax.add_decayed_weights(optim.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
        *([_scaled(optim)] if optim.lr_scale else []),
    )
    return optax.chain(_clip(optim.clip), rule) if optim.clip else rule


def _clip(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with a product, which XLA fuses into what follows; optax's
    division writes the clipped gradient of every parameter to memory on a CPU."""

    def clip(grads: Arrays, _: Any = None) -> Arrays:
        norm = optax.tree.norm(grads)
        by = jnp.where(norm < most, 1.0, most / norm)
        return {path: by.astype(grad.dtype) * grad for path, grad in grads.items()}

    return optax.stateless(clip)


def lr_factor(optim: Optim, path: str) -> float:
    """A parameter's factor for the learning rate (`Optim.lr_scale`)."""
    rows = (scale for text, scale in optim.lr_scale if pattern(text).fullmatch(path))
    return next(rows, 1.0)


def trainable(optim: Optim, params: Arrays) -> Arrays:
    """The parameters that are not frozen: those with gradients and optimiser state. Of a model with
    adapters (`--lora`) these are adapters only.

    Raises:
        Problem: (usage) a pattern of `lr_scale` matches no parameter, or all are frozen.
    """
    for text, _ in optim.lr_scale:
        if not any(pattern(text).fullmatch(path) for path in params):
            raise Problem(
                f"optim.lr_scale: no parameter has a path like {text!r}",
                why=f"paths look like {', '.join(list(params)[:3])}",
                fix="see `jaxmodels inspect RUN --tensors` for all of them; * stands for anything",
                exit_code=USAGE,
            )
    adapters = {path: leaf for path, leaf in params.items() if is_adapter(path)}
    moving = {p: leaf for p, leaf in (adapters or params).items() if lr_factor(optim, p)}
    if not moving:
        raise Problem(
            "optim.lr_scale freezes every parameter",
            fix="leave something to train",
            exit_code=USAGE,
        )
    return moving


def _scaled(optim: Optim) -> optax.GradientTransformation:
    """Updates times each parameter's factor."""

    def scale(updates: Arrays, _: Any = None) -> Arrays:
        return {path: lr_factor(optim, path) * update for path, update in updates.items()}

    return optax.stateless(scale)


def _direction(optim: Optim) -> optax.GradientTransformation:
    """Gradients → updates at a learning rate of 1, without weight decay."""
    if optim.name == "sgd":
        return optax.trace(optim.momentum) if optim.momentum else optax.identity()
    if optim.name == "lion":
        return optax.scale_by_lion(optim.b1, optim.b2)
    if optim.name == "adafactor":
        # Factored from a side of 64 on (optax: 128), because heads are that narrow. Updates are
        # clipped to an rms of 1 (Shazeer & Stern 2018, arXiv:1804.04235).
        factored = optax.scale_by_factored_rms(min_dim_size_to_factor=64)
        return optax.chain(factored, optax.clip_by_block_rms(1.0))
    if optim.name == "muon":
        return scale_by_muon(optim)
    return optax.scale_by_adam(optim.b1, optim.b2, optim.eps)


def with_moments(opt: Any, count: int, mu: Arrays, nu: Arrays) -> Any:
    """The state of `optimiser` with AdamW's moments replaced.

    Args:
        opt: a state; its count of schedule steps is kept.
        count: updates that the moments have seen.
        mu: path → running mean of the gradient, float32; frozen parameters are left out.
        nu: path → running mean of its square, float32.
    """

    def one(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByAdamState):
            return part
        number = np.asarray(count, part.count.dtype)
        seen = jax.make_array_from_callback((), part.count.sharding, number.__getitem__)
        first, second = ({path: moment[path] for path in part.mu} for moment in (mu, nu))
        return part._replace(count=seen, mu=first, nu=second)

    return jax.tree.map(one, opt, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))
