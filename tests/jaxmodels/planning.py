"""Shared by the tests of `jaxmodels plan`: jobs and invented compilations."""

from dataclasses import replace

import jaxmodels
from jaxmodels.runtime.planning.chips import GIB
from jaxmodels.runtime.planning.plan import Compiled, Workload

# The keys of --json that scripts stand on.
CONTRACT = {
    "fits",
    "hbm_per_device_bytes",
    "hbm_limit_bytes",
    "flops_per_step",
    "roofline_step_seconds",
    "collectives",
    "compile_seconds",
}


def job_of(spec: str = "wikigpt:tiny", **changes) -> Workload:
    arch, preset, config = jaxmodels.preset(spec)
    package = jaxmodels.arch(arch)
    return Workload(package, config, replace(package.RECIPES[preset], **changes))


def compiled_of(
    memory: int = GIB, collectives=(), work: int = 10**12, kernels: int = 0, operations=()
) -> Compiled:
    parts = {"parameters": memory // 4, "optimizer": memory // 2, "temporaries": memory // 4}
    return Compiled(parts, 2 * memory, list(collectives), work, kernels, list(operations), 0.1, 2.0)
