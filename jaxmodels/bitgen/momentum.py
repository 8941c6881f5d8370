"""A second copy of the encoders that follows slowly and makes the queue's features (He et al.
2020, arXiv:1911.05722; ALBEF). FIBER has none, and neither has a model with `momentum` 0."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxmodels.bitgen.config import Config
from jaxmodels.layers.low_rank import without_adapters

# Parameters that features depend on; the rest of a model is not copied.
ENCODERS = (
    "embed", "pos", "vision", "project", "text", "image", "text_norm", "image_norm", "text_pool",
    "image_pool",
)  # fmt: skip


class Following(nnx.Variable):
    """A parameter's slow copy: state that is not trained."""


class Slow(nnx.Module):
    """The slow copies, under their parameters' paths with dots. Zeros until the first commit."""

    def __init__(self, cfg: Config, params: dict[str, Array]):
        self.momentum = cfg.momentum
        for name, array in params.items():
            setattr(self, name, Following(jnp.zeros_like(array)))
        self.steps = Following(jnp.zeros((), jnp.int32))


def encoders(model: nnx.Module) -> dict[str, Array]:
    """Path with dots → parameter, of those that are copied."""
    leaves: Any = jax.tree.flatten_with_path(nnx.state(model, nnx.Param))[0]
    named = ((_name(path), leaf) for path, leaf in leaves)
    return {name: leaf for name, leaf in named if name.partition(".")[0] in ENCODERS}


def following(model: Any) -> Any:
    """The model with the slow copies as its parameters; itself before there are any."""
    parts: Any = nnx.split(without_adapters(model), nnx.Param, ...)
    graph, params, model_state = parts
    slow = model.slow

    def chosen(path: Any, leaf: Array) -> Array:
        copy = getattr(slow, _name(path), None)
        if copy is None:
            return leaf
        return jnp.where(slow.steps[...] > 0, copy[...].astype(leaf.dtype), leaf)

    return nnx.merge(graph, jax.tree.map_with_path(chosen, params), model_state)


def follow(model: Any) -> None:
    """Moves the copies towards the parameters; the first time, sets them."""
    slow = model.slow
    rate = jnp.where(slow.steps[...] > 0, slow.momentum, 0.0)
    for name, value in encoders(model).items():
        copy = getattr(slow, name)
        copy.set_value(rate * copy[...] + (1 - rate) * value.astype(copy[...].dtype))
    slow.steps.set_value(slow.steps[...] + 1)


def _name(path: Any) -> str:
    return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
