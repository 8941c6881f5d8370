"""Stacked blocks and separate blocks are the same parameters."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmodels
from jaxmodels import sizes
from jaxmodels.runtime.paths import stack, unstack

NAMES = st.sampled_from(["norm/scale", "attn/q/kernel", "mlp/bias", "x"])
SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@given(
    layers=st.integers(1, 12),
    blocks=st.dictionaries(NAMES, SHAPES, min_size=1),
    others=st.dictionaries(st.sampled_from(["embed/e", "block/s", "blocks"]), SHAPES),
)
def test_unstack_and_stack_are_inverse(layers, blocks, others):
    rng = np.random.default_rng(0)
    flat = {f"blocks/{name}": rng.normal(size=(layers, *shape)) for name, shape in blocks.items()}
    flat |= {name: rng.normal(size=shape) for name, shape in others.items()}
    apart = unstack(flat, ("blocks",))
    assert len(apart) == layers * len(blocks) + len(others)
    for name in blocks:
        for i in range(layers):
            np.testing.assert_array_equal(apart[f"blocks/{i}/{name}"], flat[f"blocks/{name}"][i])
    shuffled = dict(sorted(apart.items(), key=lambda item: hash(item[0])))
    for held in (apart, shuffled):
        back = stack(held, ("blocks",), np.stack)
        assert back.keys() == flat.keys()
        for path, leaf in flat.items():
            np.testing.assert_array_equal(back[path], leaf)


def test_without_stacks_nothing_changes():
    flat = {"blocks/0/x": 1, "y": 2}
    assert unstack(flat, ()) == flat == stack(flat, ())


def test_shapes_are_cut_too():
    leaf = jax.ShapeDtypeStruct((3, 4, 5), np.float32)
    assert [x.shape for x in unstack({"blocks/x": leaf}, ("blocks",)).values()] == [(4, 5)] * 3


@pytest.mark.slow
def test_sizes_name_every_block():
    config = jaxmodels.arch("wigip").PRESETS["1.7b"]
    shapes = sizes.shapes("wigip", config)
    assert shapes["blocks/23/attn/q/kernel"].shape == (2496, 32, 78)
    assert "blocks/1 " in jaxmodels.summary(jaxmodels.create("wigip:tiny"))
