"""Metrics of a loss: averaged, logged, plotted; and losses that compare rows."""

import json
from dataclasses import replace
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.architecture import Architecture
from jaxmodels.errors import DONE, USAGE
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import init, train_step
from tests.jaxmodels.helpers import train

charlm = jaxmodels.arch("charlm")

CONFIG = charlm.PRESETS["tiny"]
RECIPE = charlm.RECIPES["tiny"]


plain = charlm.loss


def telling_loss(model, batch, rngs):
    """charlm's, with the mean token, how many rows it saw, and something for commit."""
    loss, _ = plain(model, batch, rngs)
    tokens = batch["tokens"]
    rows = jnp.asarray(len(tokens), jnp.int32)
    metrics = {"mean_token": tokens.mean(), "rows": rows, "perplexity": jnp.exp(rows / 4)}
    return loss, {"metrics": metrics, "seen": rows}


def package(**changes):
    """charlm with other parts."""
    made = ModuleType("made")
    names = ("Model", "loss", "commit", "SHARDING", "PRESETS", "RECIPES")
    made.__dict__.update({name: getattr(charlm, name) for name in names} | changes)
    return Architecture.of(made)


def stepped(package, recipe, batch):
    """The state after one step and its metrics."""
    rate = schedule(recipe.optim, recipe.steps)
    tx, mesh = optimiser(recipe.optim, rate), make_mesh()
    graphdef, fresh, abstract = init(package, CONFIG, recipe, tx, mesh)
    step = train_step(package, graphdef, tx, rate, recipe, abstract)
    state, told = step(fresh(), put_batch(batch, mesh))
    return state, told.read()


def tokens(rows=64, length=33):
    rng = np.random.default_rng(0)
    return rng.integers(0, CONFIG.vocab, (rows, length)).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("accum", [1, 4])
def test_metrics_are_means_over_micro_batches(accum):
    batch = {"tokens": tokens()}
    recipe = replace(RECIPE, accum=accum, slices=1)
    _, metrics = stepped(package(loss=telling_loss), recipe, batch)
    assert metrics.keys() == {"loss", "grad_norm", "lr", "mean_token", "rows", "perplexity"}
    assert metrics["mean_token"] == pytest.approx(batch["tokens"].mean(), rel=1e-6)
    assert metrics["rows"] == 64 / accum


@pytest.mark.slow
def test_commit_gets_the_rest_of_aux():
    seen = []

    def commit(model, aux):
        seen.append(set(aux))
        model.steps[...] += aux["seen"]

    made = package(loss=telling_loss, commit=commit)
    state, _ = stepped(made, replace(RECIPE, accum=2, slices=1), {"tokens": tokens()})
    assert int(state.model_state["steps"]) == 64
    assert all(names == {"seen"} for names in seen)


@pytest.mark.slow
def test_a_loss_that_compares_rows_sees_all_rows_of_a_micro_batch():
    made = package(loss=telling_loss, CROSS_ROW_LOSS=True)
    _, metrics = stepped(made, RECIPE, {"tokens": tokens()})
    assert metrics["rows"] == 64

    def mean(model, batch, rngs):  # a mean over rows, with nothing for commit
        loss, aux = telling_loss(model, batch, rngs)
        return loss, {"metrics": aux["metrics"]}

    _, cut = stepped(package(loss=mean), RECIPE, {"tokens": tokens()})
    assert cut["rows"] == 32


@pytest.mark.slow
def test_images_travel_with_the_tokens():
    """Arrays of any rank are cut into micro-batches and slices along their first axis."""

    def loss(model, batch, rngs):
        value, _ = plain(model, batch, rngs)
        pixels = batch["images"].astype(jnp.float32).mean() / 255
        return value, {"metrics": {"pixels": pixels, "image_id": batch["image_id"].mean()}}

    images = np.random.default_rng(1).integers(0, 256, (64, 4, 6, 3)).astype(np.uint8)
    ids = np.arange(64, dtype=np.int32)
    batch = {"image_id": ids, "images": images, "mask": tokens() * 0 + 1, "tokens": tokens()}
    _, metrics = stepped(package(loss=loss), replace(RECIPE, accum=2, slices=2), batch)
    assert metrics["pixels"] == pytest.approx(images.mean() / 255, rel=1e-6)
    assert metrics["image_id"] == pytest.approx(31.5)


@pytest.mark.slow
def test_an_evaluation_weighs_metrics_by_rows():
    made = package(loss=telling_loss)
    tx = optimiser(RECIPE.optim, 0.1)
    graphdef, fresh, _ = init(made, CONFIG, RECIPE, tx, make_mesh())
    state, whole = fresh(), tokens(12)
    batches = [{"tokens": whole[:8]}, {"tokens": whole[8:]}]
    found = evaluate(loss_function(made, graphdef), state.params, state.model_state, batches)
    assert found.keys() == {"loss", "mean_token", "rows", "perplexity"}
    assert next(iter(found)) == "loss"
    assert found["mean_token"] == pytest.approx(whole.mean(), rel=1e-6)
    assert found["rows"] == pytest.approx((8 * 8 + 4 * 4) / 12)
    assert found["perplexity"] == pytest.approx(np.exp((8 * 2 + 4 * 1) / 12), rel=1e-6)


@pytest.mark.slow
def test_metrics_reach_the_log_the_board_the_checkpoint_and_a_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(charlm, "loss", telling_loss, raising=False)
    run = tmp_path / "run"
    assert train(run, "--steps", "10") == DONE
    records = read(run / "metrics.jsonl")
    assert all(0 < record["mean_token"] < CONFIG.vocab for record in records)
    assert "valid_mean_token" in records[-1]
    assert "valid_mean_token" not in records[0]
    manifest = json.loads((run / "checkpoints" / "10" / "manifest.json").read_text())
    assert manifest["metrics"]["valid_mean_token"] == records[-1]["valid_mean_token"]
    assert (run / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_compares_rows_takes_no_slices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(charlm, "CROSS_ROW_LOSS", True, raising=False)
    out = str(tmp_path / "run")
    assert main(["train", "charlm:tiny", "--out", out, "--slices", "2"]) == USAGE
    assert "compares its rows" in capsys.readouterr().err
