"""wigip against the seed's own code (tests/golden/wigip), and what the dense objective promises."""

import gzip
import pickle
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bridge.ops import OPS
from jaxmodels import wigip
from jaxmodels.runtime.paths import flatten, pattern, split, stack, unstack

TINY = wigip.PRESETS["tiny"]
DENSE = replace(TINY, objective="dense")


@pytest.fixture(scope="module")
def seed(golden):
    """The golden inputs and outputs, and a model with the seed's weights."""
    io = np.load(golden / "wigip" / "io.npz")
    layers, dim, heads, side, patch, vocab = io["cfg"].tolist()
    config = wigip.Config(vocab, side, patch, dim, layers, heads)
    weights = {}
    with zipfile.ZipFile(golden / "wigip" / "step_7.zip") as archive:
        for name in archive.namelist():
            if name.startswith("params/") and name.endswith(".pkl.gz"):
                tree = pickle.loads(gzip.decompress(archive.read(name)))  # our own golden file
                key = name.removeprefix("params/").removesuffix(".pkl.gz")
                weights |= flatten({key: tree}, ".")
    skeleton, params, rest = split(wigip.Model(config, rngs=nnx.Rngs(0)))
    layered = unstack(params, wigip.STACKED)
    for path, leaf in layered.items():
        for ours, theirs, op in wigip.SEED:
            if found := pattern(ours).fullmatch(path):
                array = OPS[op].inverse(np.asarray(weights.pop(theirs.format(**found.groupdict()))))
                assert array.shape == leaf.shape
                layered[path] = jnp.asarray(array)
    assert not weights
    return io, skeleton, stack(layered, wigip.STACKED), rest


def test_logits(seed):
    io, skeleton, params, rest = seed
    logits, _ = skeleton.merge(params, rest)(jnp.asarray(io["ids"]))
    assert np.abs(logits - io["logits"]).max() <= 2e-5


def test_loss_and_gradient_norm(seed):
    io, skeleton, params, rest = seed
    tokens = jnp.concatenate([io["ids"], io["target"][:, None]], axis=1)
    loss, grads = jax.value_and_grad(
        lambda p: wigip.loss(skeleton.merge(p, rest), {"tokens": tokens}, None)[0]
    )(params)
    assert abs(loss - io["loss"]) <= 1e-5
    assert float(optax.tree.norm(grads)) == pytest.approx(float(io["gradnorm"]), rel=1e-4)
