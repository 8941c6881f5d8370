"""Compiling a train step for devices that are only described: what `tpu` and `gpu` share."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from jaxmodels.architecture import Architecture
from jaxmodels.errors import INTERNAL, Problem
from jaxmodels.recipe import Recipe


class Compiler(NamedTuple):
    """A compiler, and the distribution that holds it."""

    name: str
    distribution: str

    @property
    def version(self) -> str:
        """The distribution's; empty if it has none."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return ""

    def failed(self, why: str) -> Problem:
        """The error for a step that it could not compile."""
        return Problem(
            f"the compiler, {self.name} {self.version or 'of unknown version'}, could not compile "
            "this step",
            why=why,
            fix=f"try another --batch, --mesh or --remat, or another version of {self.name}",
            exit_code=INTERNAL,
        )


def compile_here(
    package: str,
    config: Any,
    recipe: Recipe,
    devices: list[Any],
    compiler: Compiler,
    options: dict[str, str] | None = None,
) -> Any:
    """The `plan.Compiled` of a step on the described devices, compiled in this process.

    Args:
        package: the architecture's module.
        config: its sizes.
        recipe: the recipe.
        devices: descriptions of the devices.
        compiler: to be named in errors.
        options: of the compiler, beside the step's own, which win.

    Raises:
        TooLarge: it does not fit.
        Problem: (internal) the compiler fails for another reason; (usage) by an option of --xla.
    """
    import jax

    from jaxmodels.runtime.compiler import refused_options
    from jaxmodels.runtime.planning.plan import Workload, compile_step
    from jaxmodels.runtime.sharding import make_mesh

    job = Workload(Architecture.of(import_module(package)), config, recipe)
    try:
        return compile_step(job, make_mesh(recipe.mesh, devices), options)
    except jax.errors.JaxRuntimeError as error:
        raise refused_options(recipe, error) or compiler.failed(str(error)[:1000]) from error
