"""Models in 16 bits with float32 norms: generation with a cache equals that without."""

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE
from tests.bridge.helpers import write_run


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["charlm", "wikigpt", "bwetaf"])
def test_a_cache_changes_nothing(tmp_path, arch):
    run = write_run(tmp_path / "run", {1: 1.0}, spec=f"{arch}:tiny")
    bridge.convert(run, tmp_path / "model", dtype="bfloat16", verify="none")
    model = bridge.load(tmp_path / "model")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 9)), jnp.int32)
    whole, _ = model(tokens)
    cache, parts = model.init_cache(2), []
    for piece in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:7], tokens[:, 7:]):
        logits, cache = model(piece, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "words"), [("charlm", []), ("wigip", ["--set", "objective=dense"])]
)
def test_they_generate(tmp_path, arch, words):
    run = write_run(tmp_path / "run", {1: 1.0}, spec=f"{arch}:tiny")
    bridge.convert(run, tmp_path / "model", dtype="bfloat16", verify="none")
    assert main(["generate", str(tmp_path / "model"), *words, "--max-new-tokens", "5"]) == DONE
