import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxmodels.layers.keys import keys


def drawn(rngs, names):
    return jnp.stack([jax.random.key_data(getattr(rngs, name)()) for name in names])


NAMES = ("params", "dropout", "params", "params", "dropout", "noise")


@pytest.mark.parametrize("streams", [{"default": 3}, {"default": 1, "dropout": 2}])
def test_keys_are_those_of_flax(streams):
    expected = drawn(nnx.Rngs(**streams), NAMES)
    assert (drawn(keys(**streams), NAMES) == expected).all()
    assert (jax.jit(lambda: drawn(keys(**streams), NAMES))() == expected).all()
    assert len(jnp.unique(expected, axis=0)) == len(NAMES)


def test_only_streams_that_were_named_are_there():
    with pytest.raises(AttributeError, match="params"):
        keys(dropout=jax.random.key(0)).params()


def test_what_is_computed_again_draws_on():
    """Blocks whose activations are computed again raise the counter for those after them."""

    @jax.jit
    def three(key):
        rngs = keys(dropout=key)
        again = nnx.remat(lambda rngs: jax.random.key_data(rngs.dropout()))
        return jnp.stack([again(rngs), again(rngs), jax.random.key_data(rngs.dropout())])

    key = jax.random.key(5)
    assert (three(key) == drawn(nnx.Rngs(dropout=key), ["dropout"] * 3)).all()
