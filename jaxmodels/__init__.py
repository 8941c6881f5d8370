"""Small language and vision-language models in pure JAX and Flax nnx.

    model = jaxmodels.create("charlm:tiny", seed=0)
    logits, cache = model(tokens)
    print(jaxmodels.summary(model))

`architecture.py` documents what a model's package exports, `registry.py` how to add one.
"""

from typing import Any

from jaxmodels.registry import ARCHS, arch, learner, package_of, preset

__version__ = "0.1.0"

__all__ = ["ARCHS", "arch", "create", "learner", "package_of", "preset", "summary"]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def create(spec: str, seed: int = 0) -> Any:
    """A new model, for example `create("charlm:tiny")`.

    There is no train or eval mode: a call with `rngs` uses dropout, a call without is
    deterministic.

    Args:
        spec: a preset, "ARCH:PRESET"; see `jaxmodels list`.
        seed: of the initial parameters; the same seed gives the same parameters.

    Returns:
        An `nnx.Module` with float32 parameters. `model(tokens)`, int32 [b, t], returns (logits,
        cache) in language models, logits float32 [b, t, v]; see the model's own docstring.

    Raises:
        Problem: (usage) there is no such preset.
    """
    from jaxmodels.layers.keys import keys

    name, _, config = preset(spec)
    return arch(name).Model(config, rngs=keys(default=seed))


def summary(model: Any) -> str:
    """A text table of each layer's tensors, parameters and bytes, with totals.

    Args:
        model: a model, or a preset such as "charlm:tiny", whose parameters are not allocated.

    Raises:
        Problem: (usage) there is no such preset, or the model's architecture is not registered.
    """
    from jaxmodels import sizes
    from jaxmodels.runtime.paths import params_of, unstack

    if isinstance(model, str):
        name, _, config = preset(model)
        return sizes.table(sizes.by_layer(sizes.shapes(name, config)))
    params = unstack(params_of(model), package_of(model).SCANNED)
    return sizes.table(sizes.by_layer(params))
