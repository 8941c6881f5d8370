"""AdamW's state is converted with the parameters, and training continues from it."""

import json
import shutil
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
from bridge.checkpoint.loading import load_moments
from jaxmodels import wikigpt
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, MISMATCH, USAGE, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.runs.checkpoint import Checkpoints
from jaxmodels.runtime.step import State
from tests.bridge.helpers import SEED
from tests.bridge.test_nanogpt import GOLDEN

# As nanoGPT wants it: exact GELU, hidden of 4 × dim.
CONFIG = replace(wikigpt.PRESETS["tiny"], gelu="exact", hidden=128)
# A larger eps than usual: the gradient of key biases is zero but for rounding, which AdamW would
# otherwise blow up to full steps.
OPTIM = Optim(
    peak_lr=1e-2,
    b1=0.9,
    b2=0.95,
    eps=1e-6,
    weight_decay=0.1,
    no_decay=("*/bias", "*/scale"),
    clip=1e9,
)


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why])


@cache
def trainer():
    """Skeleton, optimiser and one compiled step of constant learning rate."""
    graphdef, params, rest = split(wikigpt.Model(CONFIG, rngs=nnx.Rngs(0)))
    tx = optimiser(OPTIM, OPTIM.peak_lr)

    def loss(params, tokens):
        return wikigpt.loss(graphdef.merge(params, rest), {"tokens": tokens}, None)[0]

    @jax.jit
    def step(params, state, tokens):
        updates, state = tx.update(jax.grad(loss)(params, tokens), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    return params, tx.init(params), step


def batch(number):
    return np.random.default_rng(number).integers(0, CONFIG.vocab, (4, 17), np.int32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of five steps: its folder, and parameters and optimiser at its end."""
    params, state, step = trainer()
    for number in range(5):
        params, state = step(params, state, batch(number))
    folder = tmp_path_factory.mktemp("run") / "run"
    folder.mkdir()
    settings = {"arch": "wikigpt", "preset": None, "model": vars(CONFIG)}
    settings["recipe"] = {"optim": vars(OPTIM)}
    (folder / "config.json").write_text(json.dumps(settings))
    keeper = Checkpoints(folder / "checkpoints", keep=1)
    key = jax.random.key_data(jax.random.key(0))
    keeper.save(State(params, {}, state, jnp.asarray(5, jnp.int32), key), {}, {"valid_loss": 2.0})
    keeper.wait()
    return folder, params, state


def assert_same(found, state):
    adam = state[1][0]  # after the clipping, which never sets in
    assert found.count == int(adam.count) == 5
    for ours, theirs in ((found.mu, adam.mu), (found.nu, adam.nu)):
        assert ours.keys() == theirs.keys()
        for path, tensor in ours.items():
            np.testing.assert_array_equal(tensor.read(), theirs[path], err_msg=path)


@pytest.mark.slow
def test_a_run_directory_has_them(run):
    folder, _, state = run
    found = load_moments(folder)
    assert_same(found, state)
    assert found.settings == {
        "lr": 1e-2,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-6,
        "weight_decay": 0.1,
    }
    assert_same(load_moments(folder / "checkpoints" / "5"), state)
    assert bridge.inspect(folder).optimizer


@pytest.mark.slow
@pytest.mark.parametrize("to", ["safetensors", "gpt2", "nanogpt"])
def test_they_cross_and_come_back(run, tmp_path, to):
    folder, _, state = run
    report = bridge.convert(folder, tmp_path / "out", to=to, optimizer=True, verify="roundtrip")
    assert report.optimizer
    found = load_moments(tmp_path / "out")
    assert_same(found, state)
    assert found.settings["b2"] == 0.95
    bridge.convert(tmp_path / "out", tmp_path / "back", to="nanogpt", optimizer=True)
    assert_same(load_moments(tmp_path / "back"), state)
    assert bridge.inspect(tmp_path / "back").optimizer
    bridge.convert(tmp_path / "out", tmp_path / "without")
    assert not (tmp_path / "without" / "optimizer.safetensors").exists()


def nanogpt_optimiser(module, settings):
    """AdamW as nanoGPT's `configure_optimizers` makes it: matrices decay, vectors do not."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.5, betas=(0.5, 0.5))


@pytest.mark.slow
def test_one_step_more_is_the_same_on_both_sides(run, tmp_path):
    folder, params, state = run
    bridge.convert(folder, tmp_path / "out", to="nanogpt", optimizer=True)
    checkpoint = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    # transformers' module has nanoGPT's parameters in nanoGPT's order; its kernels are turned, so
    # the moments are as well.
    module = bridge.torch.load(tmp_path / "out").train()
    optimizer = nanogpt_optimiser(module, OPTIM)
    turned = {
        number
        for number, p in enumerate(q for g in optimizer.param_groups for q in g["params"])
        if any(p is module.get_parameter(name) for name in KERNELS)
    }
    for number, entry in checkpoint["optimizer"]["state"].items():
        for moment in ("exp_avg", "exp_avg_sq") if number in turned else ():
            entry[moment] = entry[moment].T.contiguous()
    optimizer.load_state_dict(checkpoint["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 1e-2
    tokens = torch.from_numpy(batch(5)).long()
    logits = module(tokens[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    expected, _ = trainer()[2](params, state, batch(5))
    module.save_pretrained(tmp_path / "after")
    after = bridge.open_checkpoint(tmp_path / "after").tensors
    moved = 0.0
    for path, array in expected.items():
        np.testing.assert_allclose(after[path].read(), array, atol=1e-6, err_msg=path)
        moved = max(moved, float(np.abs(np.asarray(array) - params[path]).max()))
    assert moved > 1e-3


KERNELS = [
    f"transformer.h.{i}.{part}.weight"
    for i in range(CONFIG.layers)
    for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]


def test_by_the_command(run, tmp_path, capsys):
    words = ["convert", str(run[0]), str(tmp_path / "out"), "--to", "nanogpt", "--optimizer"]
    assert main([*words, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["optimizer"] is True


def test_absent_moments_are_a_problem(tmp_path):
    told = refused(
        MISMATCH, bridge.convert, GOLDEN / "nanogpt_bias", tmp_path / "out", optimizer=True
    )
    assert "no optimiser state" in told
    assert "sgd" in told
    assert not (tmp_path / "out").exists()
    assert "no optimiser state" in refused(MISMATCH, load_moments, SEED)
    refused(USAGE, bridge.convert, SEED, tmp_path / "out", to="orbax", optimizer=True)


def test_moments_of_another_model(run, tmp_path):
    bridge.convert(run[0], tmp_path / "a", to="nanogpt", optimizer=True)
    path = tmp_path / "a" / "ckpt.pt"
    value = torch.load(path, weights_only=True)
    state = value["optimizer"]["state"]
    state[2]["exp_avg"] = torch.zeros(3, 4)
    torch.save(value, path)
    told = refused(MISMATCH, load_moments, path)
    assert "transformer.h.0.attn.c_attn.weight" in told
    assert "(3, 4), not (96, 32)" in told
    del state[2]
    torch.save(value, path)
    assert "27 entries for 29 tensors" in refused(MISMATCH, load_moments, path)
    bridge.load(path)  # the parameters are sound
    assert any("27 entries" in note for note in bridge.inspect(path).notes)


@pytest.mark.slow
def test_a_stray_or_damaged_optimizer_file(run, tmp_path):
    bridge.convert(run[0], tmp_path / "a", optimizer=True)
    shutil.copyfile(tmp_path / "a" / "optimizer.safetensors", tmp_path / "optimizer.safetensors")
    bridge.convert(GOLDEN / "nanogpt_bias", tmp_path / "b")
    shutil.copyfile(tmp_path / "optimizer.safetensors", tmp_path / "b" / "optimizer.safetensors")
    assert "another model" in refused(MISMATCH, load_moments, tmp_path / "b")
