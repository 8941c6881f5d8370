"""TPU slices without a TPU: libtpu describes their devices and compiles for them.

libtpu is no development dependency, since on a CPU it prints warnings when JAX starts; `make test`
installs it into `.venv/tpu`, which only the tests see.
"""

import os
from typing import Any

from jaxmodels.extras import require
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning.chips import Topology, topology
from jaxmodels.runtime.planning.described import Compiler, compile_here
from jaxmodels.runtime.planning.isolated import ProcessDied, run_isolated

COMPILER = Compiler("libtpu", "libtpu")

# libtpu looks for a TPU's metadata server and for a lock file when it is loaded.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare() -> None:
    """Prepares this process and its children for libtpu; to be called before JAX is imported.

    Raises:
        Problem: (usage) libtpu is not installed.
    """
    os.environ.update(ENVIRONMENT)
    require("libtpu", "compiling for a TPU (which need not be there)")


def devices(slice_: Topology) -> list[Any]:
    """Descriptions of a slice's devices, to compile for."""
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if slice_.name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device a chip, as on a TPU VM, not two cores
    if slice_.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(topology_name=slice_.name, platform="tpu", **options)
    return list(described.devices)


def compile_for(package: str, config: Any, recipe: Recipe, name: str) -> Any:
    """The `plan.Compiled` of a step on the named slice, compiled in this process.

    Raises:
        TooLarge: it does not fit.
        Problem: (internal) the compiler fails for another reason.
    """
    return compile_here(package, config, recipe, devices(topology(name)), COMPILER)


def compile_isolated(package: str, config: Any, recipe: Recipe, name: str) -> Any:
    """`compile_for` in a process of its own, since libtpu may crash.

    Raises:
        TooLarge: it does not fit.
        Problem: (internal) the compiler fails for another reason, or crashes.
    """
    try:
        return run_isolated(compile_for, package, config, recipe, name)
    except ProcessDied as died:
        raise COMPILER.failed(f"it ended with {died}: {died.log[:300]}") from died
