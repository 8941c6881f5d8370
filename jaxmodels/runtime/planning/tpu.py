"""TPU slices without a TPU: libtpu describes their devices and compiles for them."""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from jaxmodels.architecture import Architecture
from jaxmodels.errors import INTERNAL, USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning.chips import Topology, topology
from jaxmodels.runtime.planning.isolated import Died, run_isolated

# libtpu looks for a TPU's metadata server and for a lock file when it is loaded.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare() -> None:
    """Makes this process and its children describe TPUs; to be called before JAX is imported.

    Raises:
        Problem: (usage) libtpu is not installed.
    """
    os.environ.update(ENVIRONMENT)
    if find_spec("libtpu") is None:
        raise Problem(
            "libtpu is not installed, which compiles for TPUs",
            why="it is a download of 200 MB, so it comes only when asked for; no TPU is needed",
            fix="pip install 'jaxmodels[tpu]'",
            exit_code=USAGE,
        )


def devices(slice_: Topology) -> list[Any]:
    """What stands for the devices of a slice when something is compiled for it."""
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if slice_.name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # both cores as one device, as on a TPU VM
    if slice_.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(topology_name=slice_.name, platform="tpu", **options)
    return list(described.devices)


def compiled_for(package: str, config: Any, recipe: Recipe, name: str) -> Any:
    """The `plan.Compiled` of a step on the slice of that name; in this process.

    Raises:
        TooLarge: it does not fit.
        Problem: (internal) the compiler refuses it for another reason.
    """
    import jax

    from jaxmodels.runtime.compiler import refused_options
    from jaxmodels.runtime.planning.plan import Job, compile_step
    from jaxmodels.runtime.sharding import make_mesh

    mesh = make_mesh(recipe.mesh, devices(topology(name)))
    try:
        return compile_step(Job(Architecture.of(import_module(package)), config, recipe), mesh)
    except jax.errors.JaxRuntimeError as error:
        raise refused_options(recipe, error) or _refused(str(error)[:1000]) from error


def compiled_apart(package: str, config: Any, recipe: Recipe, name: str) -> Any:
    """The same in a process of its own, which libtpu may crash and may write to.

    Raises:
        TooLarge: it does not fit.
        Problem: (internal) the compiler refuses it for another reason, or died.
    """
    try:
        return run_isolated(compiled_for, package, config, recipe, name)
    except Died as died:
        raise _refused(f"it ended with {died}: {died.log[:300]}") from died


def _refused(why: str) -> Problem:
    try:
        found = version("libtpu")
    except PackageNotFoundError:
        found = "of unknown version"
    return Problem(
        f"the compiler, libtpu {found}, could not compile this step",
        why=why,
        fix="try another --batch, --mesh or --remat, or another version of libtpu",
        exit_code=INTERNAL,
    )
