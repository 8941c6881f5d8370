"""Small language and vision-language models in pure JAX and Flax nnx.

    model = jaxmodels.create("charlm:tiny", seed=0)
    logits, cache = model(tokens)
    print(jaxmodels.summary(model))

A model package is its own specification: `architecture.py` says what it exports, `registry.py`
how one from outside joins.
"""

from typing import Any

from jaxmodels.registry import ARCHS, arch, learner, package_of, preset

__version__ = "0.1.0"

__all__ = ["ARCHS", "arch", "create", "learner", "package_of", "preset", "summary"]


def create(spec: str, seed: int = 0) -> Any:
    """A freshly initialised `nnx.Module`, for example `create("charlm:tiny")`.

    The same seed gives the same parameters. Calls are deterministic unless `rngs` is passed.
    """
    from jaxmodels.layers.keys import keys

    name, _, config = preset(spec)
    return arch(name).Model(config, rngs=keys(default=seed))


def summary(model: Any) -> str:
    """Tensors, parameters and bytes of each layer, and in all, as a table.

    Args:
        model: a module, or a preset such as "charlm:tiny", whose parameters are not allocated.

    Raises:
        Problem: (usage) there is no such preset.
    """
    from jaxmodels import sizes
    from jaxmodels.runtime.paths import params_of, unstack

    if isinstance(model, str):
        name, _, config = preset(model)
        return sizes.table(sizes.by_layer(sizes.shapes(name, config)))
    held = unstack(params_of(model), package_of(model).SCANNED)
    return sizes.table(sizes.by_layer(held))
