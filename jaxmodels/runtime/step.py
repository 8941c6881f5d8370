"""The training state and the one train step, for every model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels.architecture import Architecture
from jaxmodels.layers.keys import keys
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import means, stats
from jaxmodels.runtime.compiler import compiler_options
from jaxmodels.runtime.optim import optimiser, schedule, trained
from jaxmodels.runtime.paths import Arrays, GraphDef, split
from jaxmodels.runtime.sharding import AnyMesh, ambient, follow, placement


class State(NamedTuple):
    """Everything that a step changes, as one pytree."""

    params: Arrays
    """Path → float32 array."""
    model_state: Arrays
    """Path → array of what is state but not trained (counters, memories)."""
    opt: Any
    """The optimiser's state."""
    step: jax.Array
    """int32: optimiser steps done."""
    key: jax.Array
    """uint32 data of the PRNG key; the key of a step is folded from it and the step."""
    ema: Arrays | None = None
    """Path → running average of the parameters that are trained; None where none is kept."""

    @property
    def weights(self) -> Arrays:
        """What is evaluated: the parameters, averaged where an average is kept."""
        return self.params | (self.ema or {})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
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

    graphdef: GraphDef
    fresh: Callable[[], State]
    abstract: State
    step: Callable[..., tuple[State, StepMetrics]]


def training(
    package: Architecture,
    config: Any,
    recipe: Recipe,
    mesh: AnyMesh,
    rate: optax.Schedule | None = None,
) -> Training:
    """`init` and `train_step` with the recipe's optimiser, at its own learning rate or another."""
    rate = rate or schedule(recipe.optim, recipe.horizon)
    tx = optimiser(recipe.optim, rate)
    graphdef, fresh, abstract = init(package, config, recipe, tx, mesh)
    step = train_step(package, graphdef, tx, rate, recipe, abstract)
    return Training(graphdef, fresh, abstract, step)


def init(
    package: Architecture,
    config: Any,
    recipe: Recipe,
    tx: optax.GradientTransformation,
    mesh: AnyMesh,
) -> tuple[GraphDef, Callable[[], State], State]:
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

    def rest_of(params: Arrays, model_state: Arrays, key: Any) -> State:
        moving = trained(recipe.optim, params)
        ema = jax.tree.map(jnp.zeros_like, moving) if recipe.ema_decay else None
        return State(params, model_state, tx.init(moving), jnp.zeros((), jnp.int32), key, ema)

    # As numbers of the host: each process has the same, on whatever devices.
    seed, key = (np.asarray(jax.random.key_data(jax.random.key(recipe.seed + n))) for n in (0, 1))
    graphdef = split(nnx.eval_shape(model, seed))[0]
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
        drawn = jax.jit(weights, out_shardings=(shardings.params, shardings.model_state))(seed)
        return jax.jit(rest_of, out_shardings=shardings, donate_argnums=(0, 1))(*drawn, key)

    return graphdef, fresh, abstract


def train_step(
    package: Architecture,
    graphdef: GraphDef,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    recipe: Recipe,
    abstract: State,
) -> Callable[..., tuple[State, StepMetrics]]:
    """The compiled step (state, batch, stop=None) → (state, told); the old state is donated.

    A batch holds accum × batch sequences. Gradients of the micro-batches are averaged in
    float32, what is a mean over tokens by their number (`means`). What the model stores (`commit`)
    is stored once, from all of them; with `EVERY_PASS` of the package after each, as its seed does,
    and the next one sees it. It tells loss and what the loss tells in `aux["metrics"]`
    (averaged alike), grad_norm (before clipping) and lr; with `stats_every` also stats
    (`stats.measure` in the steps that are due, zeros in the others). With `stop`, int32 [devices]
    as of `sharding.everywhere`, also stop: its largest, which tells all processes the same.

    `abstract` (of `init`) says the mesh, and keeps the state where it was born. Left to choose, XLA
    may place the new state otherwise than the old one, and the second step is then compiled once
    more.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = placed.step.mesh
    gradient = _gradient(package, graphdef, recipe, placed.params, mesh)
    store = _store(package, graphdef)
    written = package.COMMITTED

    def step(
        state: State, batch: dict[str, jax.Array], stop: jax.Array | None = None
    ) -> tuple[State, StepMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        held = state.model_state | {path: state.params[path] for path in written}

        def one(held: Arrays, piece: Any) -> Any:
            return gradient(state.params | {path: held[path] for path in written}, held, piece)

        def one_stored(held: Arrays, piece: Any) -> Any:
            result, aux = one(held, piece)
            return result, store(state.params, held, aux), {}

        if recipe.accum == 1:
            (loss, told, grads), model_state, _ = one_stored(held, (batch, key, None))
        else:
            pieces = means.pieces(package, recipe.accum, batch, key)
            if package.EVERY_PASS:
                (loss, told, grads), model_state, _ = means.scanned(one_stored, held, pieces)
            else:
                (loss, told, grads), aux = means.of_pieces(partial(one, held), pieces)
                model_state = store(state.params, held, aux)
        before = state.params | {path: model_state.pop(path) for path in written}
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
        ema = state.ema and averaged(recipe.ema_decay, state.step, state.ema, params)
        return State(params, model_state, opt, state.step + 1, state.key, ema), StepMetrics(
            jnp.stack(list(scalars.values())),
            tuple(scalars),
            measured,
            None if stop is None else stop.max(),
        )

    out = placed, NamedSharding(mesh, P())
    return jax.jit(
        ambient(mesh, step),
        donate_argnums=0,
        out_shardings=out,
        compiler_options=compiler_options(recipe, mesh),
    )


def averaged(decay: float, step: jax.Array, ema: Arrays, params: Arrays) -> Arrays:
    """The running average after a step, d · ema + (1 − d) · params.

    d is the decay, but at most (1 + t)/(10 + t) in step t, counted from 0, as of TensorFlow's
    ExponentialMovingAverage; and 0 in the first step, as of diffusers' EMAModel, so that the
    average never knows of random parameters.
    """
    t = step.astype(jnp.float32)
    keep = jnp.where(t == 0, 0.0, jnp.minimum(decay, (1 + t) / (10 + t)))
    return {
        path: old + (1 - keep).astype(old.dtype) * (params[path] - old) for path, old in ema.items()
    }


def _gradient(
    package: Architecture, graphdef: GraphDef, recipe: Recipe, placed: Arrays, mesh: Mesh
) -> Callable[..., Any]:
    """(params, rest, (batch, key, share)) → ((loss, metrics, gradients), what is for `commit`).

    It takes one micro-batch, and how much its tokens count among those of all (`means.shares`).
    Gradients are those of the parameters that are not frozen, and lie where their parameters do
    (`placed`): left to choose, XLA may gather them.
    """
    dtype = jnp.dtype(recipe.dtype)

    def whole(params: Arrays, model_state: Arrays, piece: Any) -> Any:
        batch, key, share = piece

        def loss(moving: Arrays) -> tuple[jax.Array, Any]:
            cast = {path: leaf.astype(dtype) for path, leaf in (params | moving).items()}
            value, aux = package.loss(graphdef.merge(cast, model_state), batch, keys(dropout=key))
            told, by_tokens, stored = means.parted(aux)
            value, told = means.weighed(value, told, by_tokens, share)
            return value, (told, stored)

        moving = trained(recipe.optim, params)
        (value, (told, stored)), grads = jax.value_and_grad(loss, has_aux=True)(moving)
        if mesh.size > 1:
            at = {path: placed[path] for path in grads}
            grads = jax.lax.with_sharding_constraint(grads, at)
        return (value, told, grads), stored

    def gradient(params: Arrays, model_state: Arrays, piece: Any) -> Any:
        slices = 1
        if not package.CROSS_ROW_LOSS:
            slices = recipe.slices or fitting_slices(piece[0], mesh)
        if slices == 1:
            return whole(params, model_state, piece)
        return means.of_pieces(
            partial(whole, params, model_state), means.pieces(package, slices, *piece)
        )

    return gradient


def _store(package: Architecture, graphdef: GraphDef) -> Callable[[Arrays, Arrays, Any], Arrays]:
    """(params, held, aux) → held after `commit`.

    What is held is the model's state that is not trained, and by their paths the parameters that
    `commit` writes (`COMMITTED` of the package).
    """
    commit = package.commit
    written = package.COMMITTED

    def store(params: Arrays, held: Arrays, aux: Any) -> Arrays:
        if commit is None:
            return held
        model = graphdef.merge(params | {path: held[path] for path in written}, held)
        commit(model, aux)
        _, params, model_state = split(model)
        return model_state | {path: params[path] for path in written}

    return store


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
