"""The train step compiled ahead of time for devices that need not exist: memory, traffic, time."""

import re
import time
from dataclasses import dataclass, field, replace
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
from jaxmodels.runtime.planning import cycles, flops, hlo, kernels
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
class Workload:
    """A training job: architecture, model sizes and recipe."""

    package: Architecture
    config: Any
    recipe: Recipe

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a step's batch, as the data pipelines make them."""
        rows = self.recipe.batch * self.recipe.accum
        return batch_shapes(self.config, rows, self.recipe.segments)

    @property
    def tokens(self) -> int:
        """Tokens that a step trains on."""
        return self.recipe.batch * self.recipe.accum * int(self.config.context)

    @property
    def flags(self) -> str:
        """The job's settings as flags of `train` and `plan`."""
        recipe = self.recipe
        mesh = f"--mesh {recipe.mesh} " if recipe.mesh else ""
        return f"{mesh}--batch {recipe.batch} --accum {recipe.accum} --remat {recipe.remat}"

    def with_recipe(self, **changes: Any) -> "Workload":
        """The same job with other settings."""
        return replace(self, recipe=replace(self.recipe, **changes))


@dataclass(frozen=True)
class Compiled:
    """A compiled step; all bytes are of one device."""

    memory: dict[str, int]
    """parameters, optimizer, ema (if one is kept), batch, temporaries (activations, gradients,
    copies), code."""
    traffic: int
    """Lower bound of the bytes between a device and its memory: arguments and results once,
    temporaries written and read."""
    collectives: list[hlo.Collective]
    flops: int
    """Operations of a step on all devices, recomputation (remat) included."""
    kernels: int
    """Operations of a step in kernels whose cost the compiler does not know, on all devices: Pallas
    (narrow sides padded to a matrix unit's) and cuDNN's attention."""
    operations: list[Operation]
    """With the cycles that the compiler expects on one device; empty if it gives none."""
    trace_seconds: float
    compile_seconds: float
    calls: dict[str, int] = field(default_factory=dict)
    """Kernel → how often a step runs it."""

    @property
    def bytes(self) -> int:
        """Memory that one device needs."""
        return sum(self.memory.values())


class TooLarge(Exception):
    """The step does not fit a device's memory.

    Args:
        needed: bytes that one device would need.
        seconds: how long the compilation took.
    """

    def __init__(self, needed: int, seconds: float):
        super().__init__(needed, seconds)
        self.needed, self.seconds = needed, seconds


def compile_step(job: Workload, mesh: Mesh, options: dict[str, str] | None = None) -> Compiled:
    """Compiles the step of `train` for the mesh's devices, which may be mere descriptions.

    Args:
        job: the training job.
        mesh: its devices.
        options: of the compiler, beside the step's own, which win.

    Raises:
        TooLarge: it does not fit into a device's memory.
    """
    began = time.monotonic()
    step, state, batch = _step(job, mesh)
    traced = step.trace(state, batch)
    work = flops.total(flops.of_jaxpr(traced.jaxpr))
    platform = {"gpu": "cuda"}.get(kind := mesh.devices.flat[0].platform, kind)
    unknown = sum(product.padded for product in flops.in_kernels(traced.jaxpr, platform))
    lowered = traced.lower(lowering_platforms=(platform,))
    middle = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(_needed(str(error)), time.monotonic() - middle) from error
    seconds = time.monotonic() - middle
    stats, text = compiled.memory_analysis(), compiled.as_text()
    memory = state_bytes(state)
    memory["batch"] = max(0, stats.argument_size_in_bytes - sum(memory.values()))
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory["temporaries"] = stats.temp_size_in_bytes + new
    memory["code"] = stats.generated_code_size_in_bytes
    return Compiled(
        memory,
        stats.argument_size_in_bytes + stats.output_size_in_bytes + 2 * stats.temp_size_in_bytes,
        hlo.collectives(text, mesh.size),
        work,
        unknown + mesh.size * kernels.attention_flops(text),
        cycles.operations(text),
        middle - began,
        seconds,
        kernels.kernels(text),
    )


def _step(job: Workload, mesh: Mesh) -> tuple[Any, State, dict[str, jax.ShapeDtypeStruct]]:
    """The step of `train` and its abstract arguments."""
    _, _, state, step = training(job.package, job.config, job.recipe, mesh)
    rows = NamedSharding(mesh, P("data"))
    batch = {name: leaf.update(sharding=rows) for name, leaf in job.batch.items()}
    return step, state, batch


def abstract_state(job: Workload, mesh: AnyMesh) -> tuple[GraphDef, State]:
    """The model's graphdef and its abstract training state, sharded over the mesh."""
    tx = optimiser(job.recipe.optim, 0.0)
    graphdef, _, state = init(job.package, job.config, job.recipe, tx, mesh)
    return graphdef, state


def state_bytes(state: State) -> dict[str, int]:
    """Bytes of the state on one device, by part."""

    def size(tree: Any) -> int:
        return sum(
            leaf.dtype.itemsize * prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )

    parameters, average = size(state.params), size(state.ema)
    others = {"optimizer": size(state) - parameters - average}
    return {"parameters": parameters, **others, **({"ema": average} if average else {})}


def _needed(message: str) -> int:
    """The bytes needed by the compiler's error message; 0 if it names none."""
    for pattern in _NEEDED:
        if found := pattern.search(message):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0


def microbatch_loss(job: Workload) -> tuple[Any, State]:
    """The loss of one micro-batch as a function of (params, model_state, batch), and its abstract
    state.

    It is to be traced for an abstract CPU: forms for other platforms have products that only move
    data (`layers/target.py`).
    """
    graphdef, state = abstract_state(job, _ONE_CPU)
    dtype = jnp.dtype(job.recipe.dtype)

    def loss(params: Arrays, model_state: Arrays, batch: Any) -> jax.Array:
        cast = {path: leaf.astype(dtype) for path, leaf in params.items()}
        with jax.sharding.use_abstract_mesh(_ONE_CPU):
            value: jax.Array = job.package.loss(graphdef.merge(cast, model_state), batch, None)[0]
        return value

    return loss, state


def useful_flops(job: Workload) -> int:
    """Operations of a step without recomputation (remat).

    Three times the products of the loss: the backward pass has two for each of the forward pass.
    With adapters (`--lora`) those of the frozen model count twice: no gradient of it is computed.
    """
    one = job.with_recipe(remat=Recipe().remat, accum=1)

    def forward(job: Workload) -> int:
        loss, state = microbatch_loss(job)
        return flops.total(flops.products(loss, state.params, state.model_state, job.batch))

    frozen = forward(one.with_recipe(lora="")) if job.recipe.lora else 0
    return job.recipe.accum * (3 * forward(one) - frozen)
