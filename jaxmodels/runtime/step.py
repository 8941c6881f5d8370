"""The training state and the one train step, for every model."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh

from jaxmodels.recipe import Recipe
from jaxmodels.runtime.paths import Arrays, Skeleton, split
from jaxmodels.runtime.sharding import follow, placement

Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """Everything that a step changes, as one pytree."""

    params: Arrays
    """Path → float32 array."""
    rest: Arrays
    """Path → array of what is state but not trained (counters, memories)."""
    opt: Any
    """The optimiser's state."""
    step: jax.Array
    """int32: optimiser steps done."""
    key: jax.Array
    """uint32 data of the PRNG key; the key of a step is folded from it and the step."""


def init(
    package: ModuleType, config: Any, recipe: Recipe, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[Skeleton, Callable[[], State], State]:
    """The skeleton of the model, a function that makes a fresh state, and its abstract form.

    The state is born sharded: no device ever holds more than its part. The abstract form
    (ShapeDtypeStructs with shardings) is what a checkpoint is restored into.
    """

    def fresh() -> State:
        _, params, rest = split(_model(package, config, recipe))
        key = jax.random.key_data(jax.random.key(recipe.seed + 1))
        return State(params, rest, tx.init(params), jnp.zeros((), jnp.int32), key)

    skeleton = split(nnx.eval_shape(lambda: _model(package, config, recipe)))[0]
    shapes = jax.eval_shape(fresh)
    placed = placement(mesh, package.SHARDING, shapes.params)
    shardings = follow(shapes, placed, mesh)
    abstract = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings,
    )
    return skeleton, jax.jit(fresh, out_shardings=shardings), abstract


def _model(package: ModuleType, config: Any, recipe: Recipe) -> Any:
    model = package.Model(config, rngs=nnx.Rngs(recipe.seed))
    model.remat = recipe.remat
    return model


def train_step(
    package: ModuleType,
    skeleton: Skeleton,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    recipe: Recipe,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Metrics]]:
    """The compiled step (state, batch) → (state, metrics); the old state is donated.

    A batch holds accum × batch sequences. Gradients of the micro-batches are averaged in
    float32; what the model stores (`commit`) is stored after each of them. Metrics: loss
    (mean over micro-batches), grad_norm (before clipping) and lr.
    """
    gradient = _gradient(package, skeleton, jnp.dtype(recipe.dtype))

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if recipe.accum == 1:
            loss, grads, rest = gradient(state.params, state.rest, batch, key)
        else:
            loss, grads, rest = _accumulate(gradient, recipe.accum, state, batch, key)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "lr": rate(state.step)}
        return State(params, rest, opt, state.step + 1, state.key), metrics

    return jax.jit(step, donate_argnums=0)


def _gradient(package: ModuleType, skeleton: Skeleton, dtype: Any) -> Callable[..., Any]:
    """(params, rest, batch, key) → (loss, gradients, rest after commit) of one micro-batch."""
    commit = getattr(package, "commit", None)

    def gradient(params: Arrays, rest: Arrays, batch: Arrays, key: jax.Array) -> Any:
        def loss(params: Arrays) -> tuple[jax.Array, Any]:
            cast = {path: leaf.astype(dtype) for path, leaf in params.items()}
            return package.loss(skeleton.merge(cast, rest), batch, nnx.Rngs(dropout=key))

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        if commit is not None:
            model = skeleton.merge(params, rest)
            commit(model, aux)
            rest = split(model)[2]
        return value, grads, rest

    return gradient


def _accumulate(
    gradient: Callable[..., Any], accum: int, state: State, batch: Arrays, key: jax.Array
) -> Any:
    micro = jax.tree.map(lambda x: rearrange(x, "(a b) ... -> a b ...", a=accum), batch)

    def one(carry: Any, item: Any) -> tuple[Any, None]:
        total, grads, rest = carry
        value, new, rest = gradient(state.params, rest, *item)
        return (
            total + value / accum,
            jax.tree.map(lambda a, b: a + b / accum, grads, new),
            rest,
        ), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    start = (jnp.zeros(()), zeros, state.rest)
    return jax.lax.scan(one, start, (micro, jax.random.split(key, accum)))[0]
