"""The train step compiled ahead of time for devices that need not exist: memory, traffic, time."""

import re
import time
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels.architecture import Architecture
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.batches import batch_shapes
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import Arrays, GraphDef
from jaxmodels.runtime.planning import cycles, flops, hlo
from jaxmodels.runtime.planning.chips import Topology
from jaxmodels.runtime.planning.cycles import Operation
from jaxmodels.runtime.sharding import AXES, AnyMesh
from jaxmodels.runtime.step import State, init, training

_ONE_CPU = AbstractMesh(
    (1, 1),
    AXES,
    axis_types=(AxisType.Auto, AxisType.Auto),
    abstract_device=AbstractDevice("cpu", None, "cpu"),
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_NEEDED = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


@dataclass(frozen=True)
class Job:
    """What is trained: `package` is an architecture's, `config` its sizes."""

    package: Architecture
    config: Any
    recipe: Recipe

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays that a step takes, as the data pipelines make them."""
        rows = self.recipe.batch * self.recipe.accum
        return batch_shapes(self.config, rows, self.recipe.segments)

    @property
    def tokens(self) -> int:
        """Tokens that a step trains on."""
        return self.recipe.batch * self.recipe.accum * int(self.config.context)

    @property
    def flags(self) -> str:
        """How `train` and `plan` are told of it."""
        recipe = self.recipe
        mesh = f"--mesh {recipe.mesh} " if recipe.mesh else ""
        return f"{mesh}--batch {recipe.batch} --accum {recipe.accum} --remat {recipe.remat}"

    def with_recipe(self, **changes: Any) -> "Job":
        """The same job with other settings."""
        return replace(self, recipe=replace(self.recipe, **changes))


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step; all bytes are of one device."""

    memory: dict[str, int]
    """parameters, optimizer, ema (if one is kept), batch, temporaries (activations, gradients,
    copies), code."""
    traffic: int
    """Bytes that pass between a device and its memory, at least."""
    collectives: list[hlo.Collective]
    flops: int
    """Operations of a step on all devices, with what is computed again (remat)."""
    kernels: int
    """Operations of a step on all devices inside of Pallas kernels, narrow sides padded to a
    matrix unit's."""
    operations: list[Operation]
    """With the cycles that the compiler expects of them on one device; empty where it gives
    none."""
    trace_seconds: float
    compile_seconds: float

    @property
    def bytes(self) -> int:
        """Memory that one device needs."""
        return sum(self.memory.values())


class TooLarge(Exception):
    """The compiler found more to hold than a device has.

    Args:
        needed: bytes that one device would need.
        seconds: that it took to find out.
    """

    def __init__(self, needed: int, seconds: float):
        super().__init__(needed, seconds)
        self.needed, self.seconds = needed, seconds


def compile_step(job: Job, mesh: Mesh) -> Compiled:
    """Compiles the step of `train` for the mesh's devices, which may be a description only.

    Raises:
        TooLarge: it does not fit into a device's memory.
    """
    began = time.monotonic()
    step, state, batch = _step(job, mesh)
    traced = step.trace(state, batch)
    work = flops.total(flops.of_jaxpr(traced.jaxpr))
    platform = mesh.devices.flat[0].platform
    kernels = sum(product.padded for product in flops.in_kernels(traced.jaxpr, platform))
    lowered = traced.lower(lowering_platforms=(platform,))
    middle = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(_needed(str(error)), time.monotonic() - middle) from error
    seconds = time.monotonic() - middle
    stats, text = compiled.memory_analysis(), compiled.as_text()
    memory = held(state)
    memory["batch"] = max(0, stats.argument_size_in_bytes - sum(memory.values()))
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory["temporaries"] = stats.temp_size_in_bytes + new
    memory["code"] = stats.generated_code_size_in_bytes
    return Compiled(
        memory,
        stats.argument_size_in_bytes + stats.output_size_in_bytes + 2 * stats.temp_size_in_bytes,
        hlo.collectives(text, mesh.size),
        work,
        kernels,
        cycles.operations(text),
        middle - began,
        seconds,
    )


def _step(job: Job, mesh: Mesh) -> tuple[Any, State, dict[str, jax.ShapeDtypeStruct]]:
    """The step of `train`, and the shapes that it is called with."""
    _, _, state, step = training(job.package, job.config, job.recipe, mesh)
    rows = NamedSharding(mesh, P("data"))
    batch = {name: leaf.update(sharding=rows) for name, leaf in job.batch.items()}
    return step, state, batch


def state_of(job: Job, mesh: AnyMesh) -> tuple[GraphDef, State]:
    """The model's skeleton, and the shapes of the training state, placed on the mesh."""
    tx = optimiser(job.recipe.optim, 0.0)
    graphdef, _, state = init(job.package, job.config, job.recipe, tx, mesh)
    return graphdef, state


def held(state: State) -> dict[str, int]:
    """Bytes of the state on one device."""

    def size(tree: Any) -> int:
        return sum(
            leaf.dtype.itemsize * prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )

    parameters, average = size(state.params), size(state.ema)
    others = {"optimizer": size(state) - parameters - average}
    return {"parameters": parameters, **others, **({"ema": average} if average else {})}


def _needed(message: str) -> int:
    """Bytes that the compiler's refusal speaks of; 0 if it names none."""
    for pattern in _NEEDED:
        if found := pattern.search(message):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0


def loss_of(job: Job) -> tuple[Any, State]:
    """The loss of one micro-batch as a function of (parameters, rest, batch), and shapes for it.

    Nothing is computed. It is traced for one CPU, which need not exist: forms for other platforms
    have products that only move numbers (`layers/target.py`).
    """
    graphdef, state = state_of(job, _ONE_CPU)
    dtype = jnp.dtype(job.recipe.dtype)

    def loss(params: Arrays, model_state: Arrays, batch: Any) -> jax.Array:
        cast = {path: leaf.astype(dtype) for path, leaf in params.items()}
        with jax.sharding.use_abstract_mesh(_ONE_CPU):
            value: jax.Array = job.package.loss(graphdef.merge(cast, model_state), batch, None)[0]
        return value

    return loss, state


def useful_flops(job: Job) -> int:
    """Operations of a step, without those that remat does again.

    Three times the products of the loss: the backward pass has two for each of the forward pass.
    """
    one = job.with_recipe(remat=Recipe().remat, accum=1)
    loss, state = loss_of(one)
    forward = flops.products(loss, state.params, state.model_state, one.batch)
    return 3 * job.recipe.accum * flops.total(forward)


def roofline(compiled: Compiled, slice_: Topology) -> dict[str, float]:
    """Seconds that a step takes at least, for its operations, its memory and its links.

    A step cannot be faster than the slowest of them, however well they overlap.
    """
    sent = sum(one.count * one.sent for one in compiled.collectives)
    return {
        "compute": compiled.flops / (slice_.devices * slice_.flops),
        "memory": compiled.traffic / slice_.bandwidth,
        "interconnect": sent / slice_.interconnect if sent else 0.0,
    }


def expected(compiled: Compiled, slice_: Topology) -> dict[str, float]:
    """Seconds that the compiler's own model gives a step; empty where it gives none.

    The compiler knows neither what a kernel costs nor a collective: kernels count as their
    products at the peak rate, and of collectives the time in which nothing else runs.
    """
    if not compiled.operations:
        return {}
    link = slice_.interconnect
    waits = (
        one.count * max(0.0, one.sent / link - one.beside / slice_.chip.clock)
        for one in compiled.collectives
    )
    return {
        "operations": sum(row.cycles for row in compiled.operations) / slice_.chip.clock,
        "kernels": compiled.kernels / (slice_.devices * slice_.flops),
        "exposed_collectives": sum(waits) if link else 0.0,
    }


def report(job: Job, compiled: Compiled, slice_: Topology) -> dict[str, Any]:
    """What is known of a step: the answer of `jaxmodels plan --json`.

    Bytes are of one device, operations of all. `roofline` times are the least that are possible,
    `expected` times are by the compiler's model of the chip: an estimate, not a measurement.
    """
    times, useful = roofline(compiled, slice_), useful_flops(job)
    bound = max(times, key=lambda name: times[name])
    peak = slice_.devices * slice_.flops
    likely: dict[str, Any] = {}
    if parts := expected(compiled, slice_):
        seconds = max(sum(parts.values()), times[bound])
        likely = {
            "expected_step_seconds": seconds,
            "expected_mfu": useful / (seconds * peak),
            "expected_tokens_per_second": job.tokens / seconds,
            "expected": parts,
        }
    return likely | {
        "fits": compiled.bytes <= slice_.chip.usable,
        "hbm_per_device_bytes": compiled.bytes,
        "hbm_limit_bytes": slice_.chip.usable,
        "memory": compiled.memory,
        "flops_per_step": useful,
        "flops_with_remat": compiled.flops,
        "roofline_step_seconds": times[bound],
        "roofline": times,
        "bound": bound,
        "mfu_bound": useful / (times[bound] * peak),
        "tokens_per_step": job.tokens,
        "tokens_per_second_bound": job.tokens / times[bound],
        "collectives": hlo.summary(compiled.collectives),
        "trace_seconds": round(compiled.trace_seconds, 3),
        "compile_seconds": round(compiled.compile_seconds, 3),
    }


def refusal(job: Job, error: TooLarge, slice_: Topology) -> dict[str, Any]:
    """The same of a step that does not fit: what it would compute, no more is known."""
    useful = useful_flops(job)
    seconds = useful / (slice_.devices * slice_.flops)
    return {
        "fits": False,
        "hbm_per_device_bytes": error.needed,
        "hbm_limit_bytes": slice_.chip.usable,
        "flops_per_step": useful,
        "roofline_step_seconds": seconds,
        "roofline": {"compute": seconds},
        "bound": "compute",
        "tokens_per_step": job.tokens,
        "collectives": {},
        "compile_seconds": round(error.seconds, 3),
    }
