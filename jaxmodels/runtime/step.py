"""The training state and the one train step, for every model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels.layers.keys import keys
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import stats
from jaxmodels.runtime.optim import optimiser, schedule, trained
from jaxmodels.runtime.paths import Arrays, Skeleton, split
from jaxmodels.runtime.sharding import AnyMesh, ambient, follow, placement

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Told:
    """What a step tells.

    Its scalars leave the devices as one array: each that a step gives back costs the host 3 µs, and
    each that is read 15.
    """

    values: Any
    """float [n]"""
    names: tuple[str, ...] = field(metadata={"static": True})
    """What each of them is."""
    stats: Any = None
    """float32 [parameters, statistics] of `stats.measure`, if the recipe asks for them."""
    stop: Any = None
    """int32: the largest of what the processes said."""

    def read(self) -> dict[str, float]:
        """The scalars by name, once they are computed."""
        return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


class Training(NamedTuple):
    """What trains a model by its recipe."""

    skeleton: Skeleton
    fresh: Callable[[], State]
    abstract: State
    step: Callable[..., tuple[State, Told]]


def training(
    package: ModuleType,
    config: Any,
    recipe: Recipe,
    mesh: AnyMesh,
    rate: optax.Schedule | None = None,
) -> Training:
    """`init` and `train_step` with the recipe's optimiser, at its own learning rate or another."""
    rate = rate or schedule(recipe.optim, recipe.steps)
    tx = optimiser(recipe.optim, rate)
    skeleton, fresh, abstract = init(package, config, recipe, tx, mesh)
    step = train_step(package, skeleton, tx, rate, recipe, abstract)
    return Training(skeleton, fresh, abstract, step)


def init(
    package: ModuleType,
    config: Any,
    recipe: Recipe,
    tx: optax.GradientTransformation,
    mesh: AnyMesh,
) -> tuple[Skeleton, Callable[[], State], State]:
    """The skeleton of the model, a function that makes a fresh state, and its abstract form.

    The state is born sharded: no device ever holds more than its part. The abstract form
    (ShapeDtypeStructs with shardings) is what a checkpoint is restored into.
    """

    def model(key: Any) -> Any:
        made = package.Model(config, rngs=keys(default=jax.random.wrap_key_data(key)))
        made.remat = recipe.remat
        return made

    def weights(key: Any) -> tuple[Arrays, Arrays]:
        return split(model(key))[1:]

    def rest_of(params: Arrays, rest: Arrays, key: Any) -> State:
        opt = tx.init(trained(recipe.optim, params))
        return State(params, rest, opt, jnp.zeros((), jnp.int32), key)

    # As numbers of the host: each process has the same, on whatever devices.
    seed, key = (np.asarray(jax.random.key_data(jax.random.key(recipe.seed + n))) for n in (0, 1))
    skeleton = split(nnx.eval_shape(model, seed))[0]
    shapes = jax.eval_shape(lambda: rest_of(*weights(seed), key))
    placed = placement(mesh, package.SHARDING, shapes.params)
    shardings = follow(shapes, shapes.params, placed, mesh)
    abstract = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings,
    )

    def fresh() -> State:
        # Drawing the weights is most of it, and one program for all seeds and optimisers.
        drawn = jax.jit(weights, out_shardings=(shardings.params, shardings.rest))(seed)
        return jax.jit(rest_of, out_shardings=shardings, donate_argnums=(0, 1))(*drawn, key)

    return skeleton, fresh, abstract


def train_step(
    package: ModuleType,
    skeleton: Skeleton,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    recipe: Recipe,
    abstract: State,
) -> Callable[..., tuple[State, Told]]:
    """The compiled step (state, batch, stop=None) → (state, told); the old state is donated.

    A batch holds accum × batch sequences. Gradients of the micro-batches are averaged in
    float32; what the model stores (`commit`) is stored after each of them. It tells loss and
    what the loss tells in `aux["metrics"]` (means over micro-batches), grad_norm (before clipping)
    and lr; with `stats_every` also stats (`stats.measure` in the steps that are due, zeros in the
    others). With `stop`, int32 [devices] as of `sharding.everywhere`, also stop: its largest,
    which tells all processes the same.

    `abstract` (of `init`) says the mesh, and keeps the state where it was born. Left to choose, XLA
    may place the new state otherwise than the old one, and the second step is then compiled once
    more.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = placed.step.mesh
    gradient = _gradient(package, skeleton, recipe, placed.params, mesh)
    written = getattr(package, "WRITTEN", ())

    def step(
        state: State, batch: dict[str, jax.Array], stop: jax.Array | None = None
    ) -> tuple[State, Told]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        held = state.rest | {path: state.params[path] for path in written}
        if recipe.accum == 1:
            (loss, told, grads), rest = gradient(state.params, held, (batch, key))
        else:
            pieces = _pieces(recipe.accum, batch, key)
            (loss, told, grads), rest = _mean(partial(gradient, state.params), held, pieces)
        before = state.params | {path: rest.pop(path) for path in written}
        moving = {path: before[path] for path in grads}
        updates, opt = tx.update(grads, state.opt, moving)
        params = before | optax.apply_updates(moving, updates)
        norm, lr = optax.tree.norm(grads), rate(state.step)
        scalars = {"loss": loss, "grad_norm": norm, "lr": lr, **told}
        measured = None
        if recipe.stats_every:
            frozen = {
                path: jnp.zeros_like(leaf) for path, leaf in params.items() if path not in grads
            }
            measured = jax.lax.cond(
                stats.due(state.step + 1, recipe.stats_every),
                lambda: stats.measure(state.params, frozen | grads, frozen | updates),
                lambda: stats.nothing(state.params),
            )
        return State(params, rest, opt, state.step + 1, state.key), Told(
            jnp.stack(list(scalars.values())),
            tuple(scalars),
            measured,
            None if stop is None else stop.max(),
        )

    out = placed, NamedSharding(mesh, P())
    return jax.jit(ambient(mesh, step), donate_argnums=0, out_shardings=out)


def _gradient(
    package: ModuleType, skeleton: Skeleton, recipe: Recipe, placed: Arrays, mesh: Mesh
) -> Callable[..., Any]:
    """(params, rest, (batch, key)) → ((loss, metrics, gradients), rest after commit).

    It takes one micro-batch. Parameters that `commit` writes (`WRITTEN` of the package) travel in
    `rest`, by their paths: the next micro-batch sees what this one wrote. Gradients are those of
    the parameters that are not frozen, and lie where their parameters do (`placed`): left to
    choose, XLA may gather them.
    """
    commit = getattr(package, "commit", None)
    written = getattr(package, "WRITTEN", ())
    dtype = jnp.dtype(recipe.dtype)

    def whole(params: Arrays, rest: Arrays, piece: Any) -> Any:
        batch, key = piece

        def loss(moving: Arrays) -> tuple[jax.Array, Any]:
            cast = {path: leaf.astype(dtype) for path, leaf in (params | moving).items()}
            return package.loss(skeleton.merge(cast, rest), batch, keys(dropout=key))

        moving = trained(recipe.optim, params)
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(moving)
        if mesh.size > 1:
            at = {path: placed[path] for path in grads}
            grads = jax.lax.with_sharding_constraint(grads, at)
        told, stored = parted(aux)
        return (value, told, grads), stored

    def gradient(params: Arrays, rest: Arrays, piece: Any) -> Any:
        params = params | {path: rest[path] for path in written}
        slices = 1
        if not getattr(package, "WHOLE", False):
            slices = recipe.slices or fitting_slices(piece[0], mesh)
        if slices == 1:
            result, aux = whole(params, rest, piece)
        else:
            step = lambda _, part: whole(params, rest, part)  # noqa: E731
            result, aux = _mean(step, {}, _pieces(slices, *piece))
        if commit is not None:
            model = skeleton.merge(params, rest)
            commit(model, aux)
            _, params, rest = split(model)
            rest |= {path: params[path] for path in written}
        return result, rest

    return gradient


def parted(aux: dict[str, Any]) -> tuple[Metrics, dict[str, Any]]:
    """A loss's `aux` as its metrics, float32 scalars by name, and what is for `commit`."""
    told = {name: jnp.asarray(x, jnp.float32) for name, x in aux.get("metrics", {}).items()}
    return told, {name: value for name, value in aux.items() if name != "metrics"}


def fitting_slices(batch: Arrays, mesh: Mesh, positions: int = 1024) -> int:
    """How many slices to take a batch in on the mesh's devices; see `Recipe.slices`.

    On a CPU, slices of about a thousand positions halve the time of a step: activations stay
    in the caches, and the memory that XLA asks for is used again instead of being mapped page
    by page in every step.
    """
    read = batch["tokens"] if "tokens" in batch else batch["images"]  # a tower reads no text
    rows, columns = read.shape[:2]
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 1
    slices = 1
    while rows % (2 * slices) == 0 and rows * columns // (2 * slices) >= positions:
        slices *= 2
    return slices


def _pieces(count: int, batch: Arrays, key: jax.Array) -> Any:
    """The batch cut along its rows, and a key for each piece; leading axis: the pieces."""
    cut = jax.tree.map(lambda x: rearrange(x, "(a b) ... -> a b ...", a=count), batch)
    return cut, jax.random.split(key, count)


def _mean(step: Callable[..., Any], carry: Any, pieces: Any) -> tuple[Any, Any]:
    """Scans `step(carry, piece) -> (result, carry)` over pieces; the results' mean, the carry."""
    count = pieces[1].shape[0]

    def one(state: Any, piece: Any) -> tuple[Any, None]:
        total, carry = state
        result, carry = step(carry, piece)
        return (jax.tree.map(lambda a, b: a + b / count, total, result), carry), None

    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(step, carry, first)[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, carry), _ = jax.lax.scan(one, (zeros, carry), pieces)
    return total, carry
