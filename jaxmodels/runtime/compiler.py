"""Options that XLA compiles a step with: part of the program, the same for `train` and `plan`."""

from typing import Any

import jax

from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.sharding import AnyMesh


def compiler_options(recipe: Recipe, mesh: Any) -> dict[str, str]:
    """Name → value: what suits the platform and the mesh, and over it what the recipe sets.

    On TPUs weights that are split over the data axis are gathered whole. libtpu would turn each
    product into a loop over the pieces, of so few columns each that wigip:1.7b on 16 chips takes
    2.4 times as long, by the compiler's own estimate.
    """
    options = {}
    if mesh.devices.flat[0].platform == "tpu" and mesh.shape["data"] > 1:
        options["xla_jf_spmd_threshold_for_windowed_einsum_mib"] = "1000000"
    return options | dict(setting.split("=", 1) for setting in recipe.xla)


def check_options(recipe: Recipe, mesh: AnyMesh) -> None:
    """Refuses options that the compiler of the mesh's devices does not know.

    Raises:
        Problem: (usage) it says so.
    """
    if not recipe.xla:
        return
    try:
        jax.jit(lambda: 0, compiler_options=compiler_options(recipe, mesh)).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise refused_options(recipe, error) or error from error


def refused_options(recipe: Recipe, error: Exception) -> Problem | None:
    """What to say of a compilation that failed by an option; None if it failed otherwise."""
    names = (setting.partition("=")[0] for setting in recipe.xla)
    if not any(name in str(error) for name in names):
        return None
    return Problem(
        f"the compiler does not take --xla {' '.join(recipe.xla)}",
        why=str(error).splitlines()[0][:300],
        fix="check the names and values; each platform's compiler has its own",
        exit_code=USAGE,
    )
