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
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels.architecture import Architecture
from jaxmodels.layers.keys import keys
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import aggregate, lora, stats
from jaxmodels.runtime.compiler import compiler_options
from jaxmodels.runtime.gradient import micro_gradient
from jaxmodels.runtime.optim import optimiser, schedule, trainable
from jaxmodels.runtime.paths import Arrays, GraphDef, split
from jaxmodels.runtime.sharding import AnyMesh, param_shardings, tree_shardings, with_mesh


class State(NamedTuple):
    """Everything that a step changes, as one pytree."""

    params: Arrays
    """Path → float32 array."""
    model_state: Arrays
    """Path → array of state that is not trained (counters, memories)."""
    opt: Any
    """The optimiser's state."""
    step: jax.Array
    """int32: optimiser steps done."""
    key: jax.Array
    """uint32 data of the PRNG key; the key of a step is folded from it and the step."""
    ema: Arrays | None = None
    """Path → running average of the trained parameters (EMA); None if none is kept."""

    @property
    def weights(self) -> Arrays:
        """The parameters to evaluate: the running average where one is kept."""
        return self.params | (self.ema or {})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """The metrics of a step.

    Its scalars are one array: each array that a step returns costs the host 3 µs, and each that is
    read 15.
    """

    values: Any
    """float [n]"""
    names: tuple[str, ...] = field(metadata={"static": True})
    """The names of the values."""
    stats: Any = None
    """float32 [parameters, statistics] of `stats.measure`, if the recipe asks for them."""
    stop: Any = None
    """int32: the maximum of the processes' flags."""

    def read(self) -> dict[str, float]:
        """The scalars by name, once they are computed."""
        return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


class Training(NamedTuple):
    """A model's training functions; see `init` and `train_step`."""

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
    """`init` and `train_step` with the recipe's optimiser, at its schedule or at `rate`."""
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
    """The model's graphdef, a function that makes a fresh state, and the abstract state.

    The state is initialised sharded: no device ever holds more than its shard. A checkpoint is
    restored into the abstract state (ShapeDtypeStructs with shardings).
    """

    def model(key: Any) -> Any:
        made = package.Model(config, rngs=keys(default=jax.random.wrap_key_data(key)))
        made.remat = recipe.remat
        return made

    def weights(key: Any) -> tuple[Arrays, Arrays]:
        params, model_state = split(model(key))[1:]
        if recipe.adapters:
            folded = jax.random.fold_in(jax.random.wrap_key_data(key), 1)
            params |= lora.draw(package, recipe.adapters, params, folded)
        return params, model_state

    def rest_of(params: Arrays, model_state: Arrays, key: Any) -> State:
        active = trainable(recipe.optim, params)
        ema = jax.tree.map(jnp.zeros_like, active) if recipe.ema_decay else None
        return State(params, model_state, tx.init(active), jnp.zeros((), jnp.int32), key, ema)

    # Host arrays, since they are the same in every process.
    seed, key = (np.asarray(jax.random.key_data(jax.random.key(recipe.seed + n))) for n in (0, 1))
    graphdef = split(nnx.eval_shape(model, seed))[0]
    if recipe.adapters:
        graphdef = lora.Adapted.of(graphdef, recipe.adapters.scale)
    shapes = jax.eval_shape(lambda: rest_of(*weights(seed), key))
    own = {path: leaf for path, leaf in shapes.params.items() if not lora.is_adapter(path)}
    everywhere = dict.fromkeys(shapes.params, NamedSharding(mesh, P()))  # adapters are small
    placed = everywhere | param_shardings(mesh, package.SHARDING, own)
    shardings = tree_shardings(shapes, shapes.params, placed, mesh)
    abstract = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings,
    )

    def fresh() -> State:
        # Drawing the weights takes most of the compilation, and is one program for all seeds and
        # optimisers.
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
    """The compiled step (state, batch, stop=None) → (state, StepMetrics); the old state is donated.

    A batch holds accum × batch sequences. Gradients of the micro-batches are averaged in float32,
    means over tokens weighted by their number (`aggregate`). `commit` stores state once, from all
    micro-batches; with the package's `EVERY_PASS` after each, and the next one sees it.

    Metrics: loss, the loss's `aux["metrics"]` (averaged alike), grad_norm (before clipping), lr;
    with `stats_every` also stats (`stats.measure` in the steps that are due, zeros in others). With
    `stop`, int32 [devices] of `sharding.put_flag`, its maximum: processes agree to stop within the
    step, without a further collective.

    The outputs get the shardings of `abstract` (of `init`). Left to choose, XLA may place the new
    state differently from the old one, and compile the second step again.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = placed.step.mesh
    gradient = micro_gradient(package, graphdef, recipe, placed.params, mesh)
    store = _store(package, graphdef)
    written = package.COMMITTED

    def step(
        state: State, batch: dict[str, jax.Array], stop: jax.Array | None = None
    ) -> tuple[State, StepMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        stored = state.model_state | {path: state.params[path] for path in written}

        def micro_batch(stored: Arrays, part: Any) -> Any:
            return gradient(state.params | {path: stored[path] for path in written}, stored, part)

        def micro_step(stored: Arrays, part: Any) -> Any:
            result, aux = micro_batch(stored, part)
            return result, store(state.params, stored, aux), {}

        if recipe.accum == 1:
            (loss, metrics, grads), model_state, _ = micro_step(stored, (batch, key, None))
        else:
            pieces = aggregate.split_batch(package, recipe.accum, batch, key)
            if package.EVERY_PASS:
                (loss, metrics, grads), model_state, _ = aggregate.scan_mean(
                    micro_step, stored, pieces
                )
            else:
                (loss, metrics, grads), aux = aggregate.mean_over(
                    partial(micro_batch, stored), pieces
                )
                model_state = store(state.params, stored, aux)
        before = state.params | {path: model_state.pop(path) for path in written}
        active = {path: before[path] for path in grads}
        updates, opt = tx.update(grads, state.opt, active)
        params = before | optax.apply_updates(active, updates)
        norm, lr = optax.tree.norm(grads), rate(state.step)
        scalars = {"loss": loss, "grad_norm": norm, "lr": lr, **metrics}
        measured = None
        if recipe.stats_every:
            frozen = {
                path: jnp.zeros_like(leaf) for path, leaf in params.items() if path not in grads
            }
            measured = jax.lax.cond(
                stats.due(state.step + 1, recipe.stats_every),
                lambda: stats.measure(state.params, frozen | grads, frozen | updates),
                lambda: stats.zeros(state.params),
            )
        ema = state.ema and ema_update(recipe.ema_decay, state.step, state.ema, params)
        return State(params, model_state, opt, state.step + 1, state.key, ema), StepMetrics(
            jnp.stack(list(scalars.values())),
            tuple(scalars),
            measured,
            None if stop is None else stop.max(),
        )

    out = placed, NamedSharding(mesh, P())
    return jax.jit(
        with_mesh(mesh, step),
        donate_argnums=0,
        out_shardings=out,
        compiler_options=compiler_options(recipe, mesh),
    )


def ema_update(decay: float, step: jax.Array, ema: Arrays, params: Arrays) -> Arrays:
    """The running average after a step, d · ema + (1 − d) · params.

    d is the decay, but at most (1 + t)/(10 + t) in step t, counted from 0 (TensorFlow's
    ExponentialMovingAverage), and 0 in the first step (diffusers' EMAModel), so that the random
    initial parameters never enter the average. Frozen parameters have none: they are their own.

    Validation and samples use the average, and the best checkpoint is chosen by it; therefore
    `eval`, `generate` and `convert` take it by default. Moments and `--init` go with the raw
    parameters; `verify` and `diff` compare with what the other side was made from.
    """
    t = step.astype(jnp.float32)
    keep = jnp.where(t == 0, 0.0, jnp.minimum(decay, (1 + t) / (10 + t)))
    return {
        path: old + (1 - keep).astype(old.dtype) * (params[path] - old) for path, old in ema.items()
    }


def _store(package: Architecture, graphdef: GraphDef) -> Callable[[Arrays, Arrays, Any], Arrays]:
    """(params, stored, aux) → stored after `commit`.

    `stored` is the model's untrained state together with the parameters that `commit` writes (the
    package's `COMMITTED`).
    """
    commit = package.commit
    written = package.COMMITTED

    def store(params: Arrays, stored: Arrays, aux: Any) -> Arrays:
        if commit is None:
            return stored
        weights = graphdef.weights(params | {path: stored[path] for path in written})
        model = graphdef.merge(weights, stored)
        commit(model, aux)
        _, params, model_state = split(model)
        return model_state | {path: params[path] for path in written}

    return store
