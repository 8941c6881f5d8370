"""What the contract tests share: tiny models, random tokens."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels

archs = pytest.mark.parametrize("arch", jaxmodels.ARCHS)


@cache
def tiny(arch: str):
    return jaxmodels.create(f"{arch}:tiny", seed=0)


def tokens_for(arch: str, batch: int = 2, length: int = 12) -> jax.Array:
    config = jaxmodels.arch(arch).PRESETS["tiny"]
    return jnp.asarray(np.random.default_rng(0).integers(0, config.vocab, (batch, length)))
