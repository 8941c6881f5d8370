"""NVIDIA GPUs without a GPU: JAX's CUDA plugin describes them and compiles for them.

Neither a GPU nor a driver is needed, only the plugin and NVIDIA's libraries (`[plan-gpu]`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from jaxmodels.extras import installed, missing
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning.chips import GpuHosts, topology
from jaxmodels.runtime.planning.described import Compiler, compile_here
from jaxmodels.runtime.planning.isolated import ProcessDied, run_isolated

COMPILER = Compiler("XLA with JAX's CUDA plugin", "jax-cuda13-plugin")

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")

# The step is traced here for GPUs elsewhere; this machine's own, if any, stay out of it.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu"}


def prepare() -> None:
    """Prepares this process and its children; to be called before JAX is imported.

    Raises:
        Problem: (usage) JAX's CUDA plugin is not installed.
    """
    os.environ.update(ENVIRONMENT)
    if not any(map(installed, PLUGINS)):
        raise missing(PLUGINS[0], "compiling for a GPU (which need not be there)")


def devices(slice_: GpuHosts) -> list[Any]:
    """Descriptions of the GPUs, to compile for; those of a host lie side by side.

    Raises:
        Problem: (internal) JAX cannot load its plugin, as with libraries of another CUDA.
    """
    from jax.experimental import topologies

    hosts, each = slice_.shape
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name=slice_.gpu.kind,
            target_config=slice_.gpu.description,
            topology=f"1x{hosts}x{each}",  # partitions × hosts × GPUs
        )
    except (NotImplementedError, RuntimeError) as error:
        raise COMPILER.failed(f"JAX cannot load the plugin: {error}") from error
    return list(found.devices)


def compiler_options(slice_: GpuHosts) -> dict[str, str]:
    """What differs from compiling on the GPU itself.

    There XLA tries its own kernels of matrix products against cuBLAS, and mostly takes cuBLAS;
    without a GPU to try them on, it would take tiles that are far too small, or find none.
    """
    options = {"xla_gpu_enable_triton_gemm": "False"}
    if slice_.gpu.estimated:
        options["xla_gpu_collect_cost_model_stats"] = "True"
    return options


@contextmanager
def capability(slice_: GpuHosts) -> Iterator[None]:
    """JAX's checks of what cuDNN takes see the described GPU instead of this machine's."""
    from jax._src.cudnn import fused_attention_stablehlo as library

    def version(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split("."))

    checks: dict[str, Any] = {
        "check_compute_capability": lambda least: slice_.gpu.capability >= version(least),
        "is_cuda_compute_capability_equal": lambda this: slice_.gpu.capability == version(this),
    }
    known = {name: check for name, check in checks.items() if hasattr(library, name)}
    with mock.patch.multiple(library, **known):
        yield


def compile_for(package: str, config: Any, recipe: Recipe, name: str) -> Any:
    """The `plan.Compiled` of a step on the named GPUs, compiled in this process.

    Raises:
        Problem: (internal) the compiler fails.
    """
    slice_ = topology(name)
    assert isinstance(slice_, GpuHosts)
    with capability(slice_):
        options = compiler_options(slice_)
        return compile_here(package, config, recipe, devices(slice_), COMPILER, options)


def compile_isolated(package: str, config: Any, recipe: Recipe, name: str) -> Any:
    """`compile_for` in a process of its own, since native code may crash.

    Raises:
        Problem: (internal) the compiler fails or crashes.
    """
    try:
        return run_isolated(compile_for, package, config, recipe, name)
    except ProcessDied as died:
        raise COMPILER.failed(f"it ended with {died}: {died.log[:300]}") from died
