"""Memory and time of a train step on a slice, estimated from shapes before compiling."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning import flops
from jaxmodels.runtime.planning.chips import Topology
from jaxmodels.runtime.planning.plan import Workload, abstract_state, microbatch_loss, state_bytes
from jaxmodels.runtime.sharding import AXES, head_counts

LARGEST_BATCH = 1 << 14


@dataclass(frozen=True)
class Setting:
    """The settings that a search varies."""

    data: int
    model: int
    batch: int
    remat: str

    @property
    def mesh(self) -> str:
        """The value of `--mesh`."""
        return f"data={self.data},model={self.model}"

    def of(self, job: Workload) -> Workload:
        """The job with this setting, its sequences a step kept where they fit."""
        accum = max(1, job.recipe.batch * job.recipe.accum // self.batch)
        return job.with_recipe(mesh=self.mesh, batch=self.batch, remat=self.remat, accum=accum)


def policies() -> tuple[str, ...]:
    """The choices of `Recipe.remat`."""
    return get_args(get_type_hints(Recipe)["remat"])


def settings(job: Workload, devices: int) -> Iterator[Setting]:
    """Every mesh that divides devices and heads, with doubling batches and every remat policy."""
    for model in range(1, devices + 1):
        if devices % model or any(count % model for count in head_counts(job.config)):
            continue
        batch = devices // model
        while batch <= LARGEST_BATCH:
            for remat in policies():
                yield Setting(devices // model, model, batch, remat)
            batch *= 2


class Estimate:
    """Memory and time of settings, from shapes alone.

    Memory: the state, gradients, a copy of the parameters in the precision of the computation, and
    the residuals of the forward pass, split over the data axis. Time: that of the operations, or of
    gathering parameters and reducing gradients over the data axis, whichever is longer; the cost of
    the model axis is left out, and found by compiling.
    """

    def __init__(self, job: Workload, slice_: Topology):
        self.job, self.slice = job, slice_
        self._state = cache(self._state_bytes)
        self._row = cache(self._one_row)
        self._factors: dict[Any, float] = {}

    def bytes(self, setting: Setting) -> int:
        """Memory of one device, in bytes."""
        fixed, _ = self._state(setting.data, setting.model)
        return fixed + round(self._activations(setting) * self._factor(setting))

    def seconds(self, setting: Setting) -> float:
        """Lower bound of a micro-batch's time."""
        work = self._row(setting.remat)[1] * setting.batch
        compute = work / (self.slice.devices * self.slice.flops)
        sent = 3 * self._state(setting.data, setting.model)[1] * (setting.data - 1)
        links = self.slice.interconnect
        return max(compute, sent / links if links else 0.0)

    def tokens_per_second(self, setting: Setting) -> float:
        """Upper bound."""
        return setting.batch * int(self.job.config.context) / self.seconds(setting)

    def learn(self, setting: Setting, needed: int) -> None:
        """Corrects later estimates by the bytes that the compiler needed."""
        fixed, _ = self._state(setting.data, setting.model)
        known = max(needed - fixed, 1) / max(self._activations(setting), 1)
        self._factors[setting.remat] = known
        self._factors[setting.mesh, setting.remat] = known

    def _factor(self, setting: Setting) -> float:
        """The ratio of compiled to estimated activations, for this mesh or a similar setting."""
        any_known = max(self._factors.values(), default=1.0)
        return self._factors.get(
            (setting.mesh, setting.remat), self._factors.get(setting.remat, any_known)
        )

    def _activations(self, setting: Setting) -> int:
        return ceil(setting.batch / setting.data) * self._row(setting.remat)[0]

    def _state_bytes(self, data: int, model: int) -> tuple[int, int]:
        """Bytes of state, gradients and compute copy on one device, and of the copy alone."""
        mesh = AbstractMesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2)
        parts = state_bytes(abstract_state(self.job, mesh)[1])
        copy = parts["parameters"] * jnp.dtype(self.job.recipe.dtype).itemsize // 4
        return sum(parts.values()) + parts["parameters"] + copy, copy

    def _one_row(self, remat: Any) -> tuple[int, int]:
        """Bytes of residuals of one sequence, and operations of both passes."""
        one = self.job.with_recipe(batch=1, accum=1, remat=remat)
        loss, state = microbatch_loss(one)
        at = (state.params, state.model_state, one.batch)

        def kept(params: Any, model_state: Any, batch: Any) -> Any:
            return jax.vjp(lambda p: loss(p, model_state, batch), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(kept, *at))
        shapes = {leaf.shape for leaf in state.params.values()}
        kept_bytes = sum(
            prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves if leaf.shape not in shapes
        )
        return kept_bytes, flops.total(flops.products(jax.grad(loss), *at))
