"""What the contract tests share: tiny models, random tokens."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels

archs = pytest.mark.parametrize("arch", jaxmodels.ARCHS)

# These read a whole window and predict the one token after it.
WINDOW = {"wigip"}
# What makes such a model predict after each token, from the tokens before it alone.
CAUSAL: dict[str, dict[str, Any]] = {"wigip": {"objective": "dense"}}
# The sizes of a model with a context of about 200, and of about 9.
CONTEXT = {200: {"wigip": {"side": 16}}, 9: {"wigip": {"side": 4, "patch": 2}}}


@cache
def tiny(arch: str):
    return jaxmodels.create(f"{arch}:tiny", seed=0)


def causal(arch: str, seed: int = 0, context: int | None = None):
    """The tiny model that predicts after each token; `context` is a key of `CONTEXT`."""
    package = jaxmodels.arch(arch)
    changes = CAUSAL.get(arch, {})
    if context is not None:
        changes = changes | CONTEXT[context].get(arch, {"context": context})
    return package.Model(replace(package.PRESETS["tiny"], **changes), rngs=nnx.Rngs(seed))


def after_each(model, tokens: jax.Array) -> jax.Array:
    """Logits after each token, [b, t, v], of a model as `causal` gives it."""
    arch = type(model).__module__.split(".")[1]
    return model.logits(model.dense(tokens)) if arch in WINDOW else model(tokens)[0]


def random_tokens(arch: str, batch: int, length: int) -> jax.Array:
    config = jaxmodels.arch(arch).PRESETS["tiny"]
    return jnp.asarray(np.random.default_rng(0).integers(0, config.vocab, (batch, length)))


def tokens_for(arch: str, batch: int = 2, length: int = 12) -> jax.Array:
    """What the model reads: [batch, length], or whole windows."""
    context = jaxmodels.arch(arch).PRESETS["tiny"].context
    return random_tokens(arch, batch, context if arch in WINDOW else length)


def batch_for(arch: str, batch: int = 2, length: int = 12) -> dict[str, jax.Array]:
    """What the loss reads: as many tokens, and one more after whole windows."""
    context = jaxmodels.arch(arch).PRESETS["tiny"].context
    return {"tokens": random_tokens(arch, batch, context + 1 if arch in WINDOW else length)}
