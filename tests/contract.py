"""What the contract tests share: tiny models, random tokens."""

import sys
from copy import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

import jaxmodels
from jaxmodels.architecture import Architecture
from jaxmodels.recipe import Recipe
from jaxmodels.registry import register
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.step import State

# The worked example of a package from outside. It joins for the modules that use the fixture
# `examples`, so that no other test depends on whether it is there.
EXAMPLES = {"llama": "llama"}
sys.path.append(str(Path(__file__).parents[1] / "examples" / "llama"))


def join() -> None:
    """Registers the examples, as a program of somebody else would."""
    for name, package in EXAMPLES.items():
        register(name, package)


def leave() -> None:
    """The opposite of `join`."""
    for name in EXAMPLES:
        jaxmodels.ARCHS.registered.pop(name, None)  # it may be installed


join()
ARCHS = tuple(jaxmodels.ARCHS)
# Those that are but a part of others read images and have no loss.
TOWERS = {name for name in ARCHS if jaxmodels.arch(name).PART_OF}
# These read images with their captions, and compare the rows of a batch.
PAIRS = {name for name in ARCHS if jaxmodels.arch(name).CROSS_ROW_LOSS}
SPECS = [f"{arch}:{preset}" for arch in ARCHS for preset in jaxmodels.arch(arch).PRESETS]
leave()
archs = pytest.mark.parametrize("arch", ARCHS)
writers = pytest.mark.parametrize("arch", [name for name in ARCHS if name not in TOWERS | PAIRS])
towers = pytest.mark.parametrize("arch", sorted(TOWERS))
# The same without the examples, for what must not depend on them, or costs too much to repeat.
ours = pytest.mark.parametrize("arch", [name for name in ARCHS if name not in EXAMPLES])
our_writers = pytest.mark.parametrize(
    "arch", [name for name in ARCHS if name not in TOWERS | PAIRS | EXAMPLES.keys()]
)

# Parameters that get no gradient: dinov2 keeps a token that it never reads, seed 004 two poolers
# and a norm that it never asks.
_NEVER = ("fusion/text_pooler/{}", "fusion/image_pooler/{}")
DEAD: dict[str, set[str]] = {  # of the `smallest` model
    # Gates begin at 0, and what is behind them has no gradient until they have moved.
    "bitgen": {
        "vision/mask",
        *(
            f"{block}/cross/{part}/{name}"
            for block in ("text/0", "image/0")
            for part in ("q", "kv", "proj")
            for name in ("kernel", "norm/scale")
        ),
    },
    "dinov2": {"mask"},
    "bitgen_stage1": {
        "vision/mask",
        *(path.format(name) for path in _NEVER for name in ("kernel", "bias")),
        *(f"decoder/blocks/0/norm2/{name}" for name in ("scale", "bias")),
    },
}
# Products of a bfloat16 step that are in float32 all the same: resizing images (two), and cosines
# of features with each other and with two queues; of bitgen the same (resizing, and features with
# a batch and its queue) and the equations of its memory.
EXACT = {"bitgen_stage1": 5, "bitgen": 2 + 2 + 23}
# These read a whole window and predict the one token after it.
WINDOW = {"wigip"}
# What makes such a model predict after each token, from the tokens before it alone.
CAUSAL: dict[str, dict[str, Any]] = {"wigip": {"objective": "dense"}}
# The sizes of a model with a context of about 200, and of about 9.
CONTEXT = {200: {"wigip": {"side": 16}}, 9: {"wigip": {"side": 4, "patch": 2}}}


# Further cases of what is trained: an architecture's name and a word → what differs in its Config.
VARIANTS: dict[str, dict[str, Any]] = {
    "wigip dense": {"objective": "dense"},
    "wigip images": {"images": True},
}
# Of these, those that read images with captions.
PICTURED = {"wigip images"}


def smallest(arch: str) -> Any:
    """Sizes of the tiny model, of the bitgens with each kind of block once.

    What holds for any depth is shown with these: a bitgen's step takes half a minute to compile.
    """
    if arch in VARIANTS:
        return replace(smallest(arch.partition(" ")[0]), **VARIANTS[arch])
    config = jaxmodels.arch(arch).PRESETS["tiny"]
    if arch not in PAIRS:
        return config
    tower = replace(config.dinov2, layers=1)
    return replace(config, layers=1, decoder_layers=1, dinov2=tower)


def learner(arch: str) -> Architecture:
    """The package of an architecture; a tower's with a loss and a recipe to test it by."""
    package = jaxmodels.arch(arch.partition(" ")[0])
    if arch not in TOWERS:
        return package
    result = ModuleType(package.module)
    for name in ("PRESETS", "Model", "SHARDING"):
        setattr(result, name, getattr(package, name))
    result.loss, result.RECIPES = distance, {"tiny": Recipe(batch=16)}
    return Architecture.of(result, arch)


def distance(model: Any, batch: dict[str, jax.Array], rngs: Any) -> tuple[jax.Array, dict]:
    """How far what a tower sees is from a target, as a mean square."""
    return jnp.square(model(batch["images"]) - batch["targets"]).mean(), {}


def images_for(arch: str, batch: int = 2, seed: int = 0) -> jax.Array:
    """Normalised images of the size that the tiny tower's positions were made for."""
    size = jaxmodels.arch(arch).PRESETS["tiny"].image_size
    drawn = np.random.default_rng(seed).normal(size=(batch, size, size, 3))
    return jnp.asarray(drawn, jnp.float32)


def exact(model):
    """The model in float64: 8-bit levels are then the same whatever the order of sums."""
    graphdef, params, rest = split(model)
    return graphdef.merge({p: x.astype(jnp.float64) for p, x in params.items()}, rest)


def in_float64(recipe: Recipe, state: State) -> tuple[Recipe, State, State]:
    """A recipe, a state and its abstract form in float64, with scales of norms away from 1.

    With scales of 1 and dropped neighbours, two activations may be whole numbers of one unit, and
    the one lie exactly between two of the 8-bit levels that the other spans.
    """
    drawn = np.random.default_rng(0)
    params = {
        path: leaf * (1 + 0.1 * drawn.normal(size=leaf.shape)) if "norm" in path else leaf
        for path, leaf in sorted(state.params.items())
    }

    def wide(leaf: jax.Array) -> jax.Array:
        dtype = jnp.float64 if leaf.dtype == jnp.float32 else leaf.dtype
        return jax.device_put(leaf.astype(dtype), leaf.sharding)

    wider = jax.tree.map(wide, state._replace(params=params))
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), wider
    )
    exactly = copy(recipe)
    object.__setattr__(exactly, "dtype", "float64")  # which no user's recipe may say
    return exactly, wider, abstract


@cache
def tiny(arch: str):
    return jaxmodels.create(f"{arch}:tiny", seed=0)


@cache
def small(arch: str):
    """The `smallest` model; as `tiny` where that is the same."""
    if arch not in PAIRS:
        return tiny(arch)
    return nnx.jit(partial(jaxmodels.arch(arch).Model, smallest(arch)))(rngs=nnx.Rngs(0))


def causal(arch: str, seed: int = 0, context: int | None = None):
    """The tiny model that predicts after each token; `context` is a key of `CONTEXT`."""
    package = jaxmodels.arch(arch)
    changes = CAUSAL.get(arch, {})
    if context is not None:
        changes = changes | CONTEXT[context].get(arch, {"context": context})
    return package.Model(replace(package.PRESETS["tiny"], **changes), rngs=nnx.Rngs(seed))


@nnx.jit
def call(model, *inputs):
    """What a model makes of its inputs, as one program: step by step it would be hundreds."""
    return model(*inputs)


@nnx.jit
def after_each(model, tokens: jax.Array) -> jax.Array:
    """Logits after each token, [b, t, v], of a model as `causal` gives it."""
    arch = jaxmodels.package_of(model).name
    return model.logits(model.dense(tokens)) if arch in WINDOW else model(tokens)[0]


def random_tokens(arch: str, batch: int, length: int, seed: int = 0) -> jax.Array:
    config = jaxmodels.arch(arch).PRESETS["tiny"]
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab, (batch, length)))


def tokens_for(arch: str, batch: int = 2, length: int = 12) -> jax.Array:
    """What the model reads: [batch, length], or whole windows."""
    context = jaxmodels.arch(arch).PRESETS["tiny"].context
    return random_tokens(arch, batch, context if arch in WINDOW else length)


def batch_for(arch: str, batch: int = 2, length: int = 12, seed: int = 0) -> dict[str, jax.Array]:
    """What the loss reads: as many tokens, and one more after whole windows; images."""
    if arch in PICTURED:
        config = smallest(arch)
        drawn = np.random.default_rng(seed).integers(0, 256, (batch, *2 * (config.side,), 3))
        return {
            "tokens": random_tokens("wigip", batch, length, seed),
            "mask": jnp.ones((batch, length), jnp.int32),
            "images": jnp.asarray(drawn, jnp.uint8),
            "image_id": jnp.arange(batch, dtype=jnp.int32),
        }
    arch = arch.partition(" ")[0]
    if arch in TOWERS:
        images, width = images_for(arch, batch, seed), jaxmodels.arch(arch).PRESETS["tiny"].dim
        return {"images": images, "targets": images[:, 0, None, :width, 0]}
    context = jaxmodels.arch(arch).PRESETS["tiny"].context
    if arch in PAIRS:
        tokens = random_tokens(arch, batch, min(length, context), seed)
        drawn = np.random.default_rng(seed).integers(0, 256, (batch, 48, 60, 3), np.uint8)
        ids = jnp.arange(batch, dtype=jnp.int32)
        return {
            "tokens": tokens,
            "mask": jnp.ones_like(tokens),
            "images": jnp.asarray(drawn),
            "image_id": ids,
        }
    length = context + 1 if arch in WINDOW else length
    return {"tokens": random_tokens(arch, batch, length, seed)}


def products(jaxpr: Any) -> list[Any]:
    """Every matrix product of a program, in order, those of loops and calls included."""
    return equations(jaxpr, {"dot_general"})


def equations(jaxpr: Any, names: set[str]) -> list[Any]:
    """The equations of a program with primitives of these names, as `products`."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in names:
            found.append(equation)
        for inner in jaxprs_in_params(equation.params):
            found += equations(inner, names)
    return found
