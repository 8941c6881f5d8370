"""Muon: orthogonal steps for kernels, Adam's for everything else, for every architecture."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, MISMATCH, USAGE
from jaxmodels.recipe import Optim
from jaxmodels.runtime import muon
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import split
from tests.contract import products
from tests.jaxmodels.helpers import losses

MUON = Optim("muon", weight_decay=0.0, clip=0.0)


def steps_of(optim, params, count=3):
    """What the optimiser adds in each of a few steps at a rate of 1, and the gradients."""
    tx = optimiser(optim, 1.0)
    state, told = tx.init(params), []
    rng = np.random.default_rng(0)
    update = jax.jit(tx.update)
    for _ in range(count):
        grads = {p: jnp.asarray(rng.normal(size=x.shape), x.dtype) for p, x in params.items()}
        updates, state = update(grads, state, params)
        told.append((grads, updates))
    return told


def orthogonal(g, times=5):
    """Newton and Schulz's iteration as Jordan et al. publish it, float64."""
    x = g / np.linalg.norm(g)
    x = x.T if (wide := g.shape[0] > g.shape[1]) else x
    for _ in range(times):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if wide else x


@pytest.mark.parametrize("small", [0, muon._SMALL], ids=["alone", "together"])
def test_a_step_is_that_of_the_formula(small, monkeypatch):
    monkeypatch.setattr(muon, "_SMALL", small)
    shapes = {"a": (8, 20), "b": (20, 8), "blocks/0": (8, 20), "blocks/1": (8, 20)}
    params = {f"{name}/kernel": jnp.zeros(shape) for name, shape in shapes.items()}
    held, beta = dict.fromkeys(params, 0.0), 0.95
    for i, (grads, updates) in enumerate(steps_of(MUON, params), start=1):
        for path, g in grads.items():
            g = np.asarray(g, np.float64)
            held[path] = beta * held[path] + (1 - beta) * g
            # Nesterov, each corrected for its start at zero.
            mixed = beta * held[path] / (1 - beta ** (i + 1)) + (1 - beta) * g / (1 - beta**i)
            expected = -0.2 * 20**0.5 * orthogonal(mixed)
            np.testing.assert_allclose(updates[path], expected, atol=2e-5)
        assert np.sqrt(np.square(updates["a/kernel"]).mean()) == pytest.approx(0.2, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("arch", jaxmodels.ARCHS)
def test_what_is_no_kernel_and_heads_are_adams(arch):
    _, params, _ = split(jaxmodels.create(f"{arch}:tiny"))
    ours, adams = (
        steps_of(optim, params, 1)[0][1] for optim in (MUON, Optim(weight_decay=0.0, clip=0.0))
    )
    for path in params:
        same = not path.endswith("/kernel") or path.startswith(("head/", "match/"))
        assert np.allclose(ours[path], adams[path], atol=1e-6) == same, path


@pytest.mark.slow
def test_heads_and_stacks_are_matrices_of_their_own():
    """wigip's blocks in one array, heads in axes of their own: each block a plain matrix."""
    rng = np.random.default_rng(1)
    kernels = {
        "blocks/attn/q/kernel": ((2, 12, 3, 4), (12, 12)),
        "blocks/attn/proj/kernel": ((2, 3, 4, 12), (12, 12)),
        "blocks/mlp/up/kernel": ((2, 12, 24), (12, 24)),
    }
    grads = {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, (s, _) in kernels.items()}
    tx = optimiser(MUON, 1.0)
    stacked, _ = tx.update(grads, tx.init(grads), grads)
    for path, (shape, flat) in kernels.items():
        for i in range(2):
            alone = {"x/kernel": grads[path][i].reshape(flat)}
            step, _ = tx.update(alone, tx.init(alone), alone)
            np.testing.assert_allclose(
                stacked[path][i], step["x/kernel"].reshape(shape[1:]), atol=1e-5
            )


def test_kernels_of_one_shape_are_multiplied_together():
    """Three products a round, however many kernels: fewer programs to compile and to load."""
    params = {f"blocks/{i}/kernel": jnp.zeros((8, 20)) for i in range(4)}
    tx = optimiser(MUON, 1.0)
    found = products(jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr)
    assert [one.outvars[0].aval.shape[0] for one in found] == [4] * 3


def test_it_is_optaxs_own():
    with jax.enable_x64(True):
        params = {"a/kernel": jnp.ones((6, 10), jnp.float64)}
        peer = optax.contrib.muon(1.0, consistent_rms=0.2, adam_b2=0.999)
        state = peer.init(params)
        for grads, updates in steps_of(MUON, params):
            expected, state = peer.update(grads, state, params)
            # Its Adam, for the rest, looks ahead as Nesterov does; ours is AdamW's.
            np.testing.assert_allclose(updates["a/kernel"], expected["a/kernel"], atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_and_has_no_moments_of_adamw(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["train", "charlm:tiny", "--optim.name", "muon", "--sample-every", "0", "--batch", "4"]
    flags = ["--steps", "6", "--save-every", "3", "--eval-every", "6"]
    assert main([*words, *flags, "--out", str(whole)]) == DONE
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "6")
    assert main(["train", "--out", str(broken)]) == DONE
    assert losses(broken) == losses(whole)
    capsys.readouterr()
    assert main(["convert", str(whole), str(tmp_path / "out"), "--optimizer"]) == MISMATCH
    assert "no moments of AdamW" in capsys.readouterr().err
    words += ["--init", str(whole), "--init-optimizer"]
    assert main([*words, "--out", str(tmp_path / "other")]) == USAGE
