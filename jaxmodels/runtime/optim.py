"""The optimiser of a recipe: clipping, the rule, linear warm-up and cosine decay (optax)."""

import re
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.paths import Arrays, pattern

_STACK = re.compile(r"blocks/(?!\d)")  # blocks that lie in one array


def schedule(optim: Optim, steps: int) -> optax.Schedule:
    """Learning rate by step: init → peak over the warm-up, then a cosine to end at `steps`, or
    to `least_lr` where it would fall below.

    The seeds hand optax `decay_steps = steps − warmup`, which optax takes to include the
    warm-up, so their cosine ends a warm-up early; here it ends with the run.
    """
    warmup = int(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)
    warmup = min(warmup, steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        optim.init_lr, optim.peak_lr, warmup, steps, optim.end_lr
    )
    if not optim.least_lr:
        return rate
    return lambda step: jnp.where(
        step < warmup, rate(step), jnp.maximum(rate(step), optim.least_lr)
    )


def optimiser(optim: Optim, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The recipe's optimiser with clipping by global norm, over `trained` parameters."""

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
    return optax.chain(optax.clip_by_global_norm(optim.clip), rule) if optim.clip else rule


def factor(optim: Optim, path: str) -> float:
    """What the learning rate is multiplied by for a parameter (`Optim.lr_scale`)."""
    rows = (scale for text, scale in optim.lr_scale if pattern(text).fullmatch(path))
    return next(rows, 1.0)


def trained(optim: Optim, params: Arrays) -> Arrays:
    """The parameters that are not frozen: what has gradients, and what the optimiser is for.

    Raises:
        Problem: (usage) a pattern of `lr_scale` matches no parameter, or all are frozen.
    """
    for text, _ in optim.lr_scale:
        if not any(pattern(text).fullmatch(path) for path in params):
            raise Problem(
                f"optim.lr_scale: no parameter has a path like {text!r}",
                why=f"paths are such as {', '.join(list(params)[:3])}",
                fix="see `jaxmodels inspect RUN --tensors` for all of them; * stands for anything",
                exit_code=USAGE,
            )
    moving = {path: leaf for path, leaf in params.items() if factor(optim, path)}
    if not moving:
        raise Problem(
            "optim.lr_scale freezes every parameter",
            fix="leave something to train",
            exit_code=USAGE,
        )
    return moving


def _scaled(optim: Optim) -> optax.GradientTransformation:
    """Updates times each parameter's own factor."""

    def scale(updates: Arrays, _: Any = None) -> Arrays:
        return {path: factor(optim, path) * update for path, update in updates.items()}

    return optax.stateless(scale)


def _direction(optim: Optim) -> optax.GradientTransformation:
    """Gradients → the step at a learning rate of 1, without weight decay."""
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
        return _muon(optim)
    return optax.scale_by_adam(optim.b1, optim.b2, optim.eps)


def _muon(optim: Optim) -> optax.GradientTransformation:
    """Steps along the nearest orthogonal matrix of each kernel's momentum (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), and Adam's for all else."""

    def matrices(tree: Arrays) -> dict[str, MuonDimensionNumbers]:
        found = {path: _matrix(path, leaf.ndim) for path, leaf in tree.items()}
        skipped = [pattern(text) for text in optim.muon_skip]
        return {
            path: axes
            for path, axes in found.items()
            if axes and not any(skip.fullmatch(path) for skip in skipped)
        }

    adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
    muon = scale_by_muon(weight_dimension_numbers=matrices)

    def parts(tree: Arrays) -> tuple[Arrays, Arrays]:
        ours = matrices(tree)
        return {p: tree[p] for p in ours}, {p: x for p, x in tree.items() if p not in ours}

    def init(params: Arrays) -> Any:
        kernels, others = parts(params)
        return muon.init(kernels), adam.init(others)

    def update(grads: Arrays, state: Any, params: Any = None) -> tuple[Arrays, Any]:
        kernels, others = parts(grads)
        steps, first = muon.update(kernels, state[0])
        rest, second = adam.update(others, state[1])
        for path, axes in matrices(kernels).items():
            steps[path] *= optim.muon_rms * _side(kernels[path].shape, axes) ** 0.5
        return steps | rest, (first, second)

    return optax.GradientTransformation(init, update)


def _matrix(path: str, ndim: int) -> MuonDimensionNumbers | None:
    """Which axes of a kernel are summed over, and which come out; the first of a stack of blocks is
    neither. None for what is no kernel."""
    axes = tuple(range(ndim))[_STACK.match(path) is not None :]
    if not path.endswith("/kernel") or len(axes) < 2:
        return None
    to_heads = path.endswith(("/q/kernel", "/k/kernel", "/v/kernel"))
    first = 1 if to_heads else len(axes) - 1
    return MuonDimensionNumbers(axes[:first], axes[first:])


def _side(shape: tuple[int, ...], axes: MuonDimensionNumbers) -> int:
    """The longer side of a kernel seen as a matrix: an orthogonal one has numbers of an rms of
    1 / √side."""
    return max(prod(shape[i] for i in held) for held in axes)


def with_moments(opt: Any, count: int, mu: Arrays, nu: Arrays) -> Any:
    """The state of `optimiser` with AdamW's own part replaced.

    Args:
        opt: a state; its count of schedule steps stays.
        count: updates that the moments have seen.
        mu: path → running mean of the gradient, float32; those of frozen parameters are left out.
        nu: path → running mean of its square, float32.
    """

    def one(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByAdamState):
            return part
        number = np.asarray(count, part.count.dtype)
        seen = jax.make_array_from_callback((), part.count.sharding, number.__getitem__)
        own, squares = ({path: held[path] for path in part.mu} for held in (mu, nu))
        return part._replace(count=seen, mu=own, nu=squares)

    return jax.tree.map(one, opt, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))
