"""Learning rates for groups of parameters, frozen parameters, and the minimum rate."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, MISMATCH, USAGE, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.optim import optimiser, schedule, trainable
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import init
from tests.jaxmodels.helpers import losses, params, same, train

charlm = jaxmodels.arch("charlm")


def test_an_update_is_multiplied_and_its_decay_too():
    plain = Optim(weight_decay=0.5, clip=0.0)
    scaled = replace(plain, lr_scale=(("embed/*", 0.1), ("*", 3.0)))
    held = {"embed/embedding": jnp.ones(4), "head/kernel": jnp.ones(4)}
    grads = jax.tree.map(lambda x: x * 0.3, held)
    found = []
    for optim in (plain, scaled):
        tx = optimiser(optim, 0.1)
        found.append(tx.update(grads, tx.init(held), held)[0])
    np.testing.assert_allclose(found[1]["embed/embedding"], 0.1 * found[0]["embed/embedding"])
    np.testing.assert_allclose(found[1]["head/kernel"], 3 * found[0]["head/kernel"])


def test_frozen_parameters_have_no_moments():
    optim = Optim(lr_scale=(("blocks/0/*", 0.0), ("embed/*", 0.0)))
    recipe = replace(charlm.RECIPES["tiny"], optim=optim)
    tx = optimiser(optim, 0.1)
    _, _, state = init(charlm, charlm.PRESETS["tiny"], recipe, tx, make_mesh())
    moving = {p for p in state.params if not p.startswith(("blocks/0/", "embed/"))}
    assert set(state.opt[1][0].mu) == moving < set(state.params)


@pytest.mark.slow
def test_a_frozen_part_keeps_its_values_and_the_rest_learns(tmp_path):
    """Freezing is exact, is remembered by the run, and resumes to the bit."""
    flags = ["--optim.lr-scale", "blocks/0/*", "0", "head/*", "0.5", "--optim.weight-decay", "0.1"]
    flags += ["--stats-every", "5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, *flags, "--steps", "20") == DONE
    config = json.loads((whole / "config.json").read_text())
    assert config["recipe"]["optim"]["lr_scale"] == [["blocks/0/*", 0.0], ["head/*", 0.5]]
    first, last = params(whole, 10), params(whole, 20)
    still = {path for path in first if (first[path] == last[path]).all()}
    assert still == {path for path in first if path.startswith("blocks/0/")}
    measured = json.loads((whole / "stats.jsonl").read_text().splitlines()[-1])["params"]
    assert measured.keys() == first.keys()
    assert measured["blocks/0/norm1/scale"]["update_ratio"] == 0
    assert measured["blocks/1/norm1/scale"]["update_ratio"] > 0
    assert train(broken, *flags, "--steps", "20", "--max-hours", "1") == DONE
    shutil.rmtree(broken / "checkpoints" / "20")
    assert main(["train", "--out", str(broken)]) == DONE
    assert losses(broken) == losses(whole)
    assert same(params(broken, 20), last)


@pytest.mark.slow
def test_moments_of_frozen_parameters_are_zeros_elsewhere(tmp_path):
    """A run's moments go where moments go; of what was frozen there are none but zeros."""
    flags = ["--optim.lr-scale", "embed/*", "0", "--steps", "4"]
    assert train(tmp_path / "run", *flags) == DONE
    moments = bridge.open_checkpoint(tmp_path / "run").moments()
    assert not moments.mu["embed/embedding"].read().any()
    assert moments.mu["head/kernel"].read().any()
    begun = [*flags, "--init", str(tmp_path / "run"), "--init-optimizer"]
    assert train(tmp_path / "next", *begun) == DONE


@pytest.mark.slow
def test_other_factors_do_not_continue_a_run(tmp_path, capsys):
    flags = ["--steps", "2", "--optim.lr-scale", "head/*"]
    assert train(tmp_path / "run", *flags, "0.5") == DONE
    assert train(tmp_path / "run", *flags, "0.5") == DONE
    assert train(tmp_path / "run", *flags, "0.25") == MISMATCH
    assert "--optim.lr-scale" in capsys.readouterr().err


@pytest.mark.slow
def test_an_older_run_without_these_settings_goes_on(tmp_path):
    run = tmp_path / "run"
    assert train(run, "--steps", "2") == DONE
    config = json.loads((run / "config.json").read_text())
    for name in ("lr_scale", "min_lr", "muon_rms", "muon_skip"):
        del config["recipe"]["optim"][name]
    del config["recipe"]["patience"]
    (run / "config.json").write_text(json.dumps(config))
    assert train(run, "--steps", "3") == DONE


@pytest.mark.parametrize(
    ("rows", "said"),
    [((("hed/*", 0.5),), "no parameter has a path like 'hed/"), ((("*", 0.0),), "freezes every")],
)
def test_patterns_that_make_no_sense_are_refused(rows, said):
    with pytest.raises(Problem, match=said) as caught:
        trainable(Optim(lr_scale=rows), {"head/kernel": 1})
    assert caught.value.exit_code == USAGE


def test_a_negative_factor_is_refused():
    with pytest.raises(Problem, match="at least 0"):
        Optim(lr_scale=(("*", -1.0),))


def test_a_settings_file_holds_pairs(tmp_path):
    from jaxmodels.commands.train_options import resolve

    file = tmp_path / "settings.toml"
    file.write_text('[recipe.optim]\nlr_scale = [["head/*", 2], ["*", 0.5]]\n')
    optim = resolve(["charlm:tiny", "--config", str(file)]).recipe.optim
    assert optim.lr_scale == (("head/*", 2.0), ("*", 0.5))
    file.write_text('[recipe.optim]\nlr_scale = [["head/*"]]\n')
    with pytest.raises(Problem, match="lr_scale"):
        resolve(["charlm:tiny", "--config", str(file)])


def test_the_least_rate_is_that_of_seed_004():
    """LambdaLR of the seed: s/1000, then max(0.1, ½(1 + cos π(s−1000)/(S−1000))), times 2e-4."""
    steps, peak = 10_000, 2e-4
    rate = schedule(Optim(peak_lr=peak, warmup=1000.0, min_lr=0.1 * peak), steps)
    for step in (0, 1, 500, 999, 1000, 1001, 5000, 8154, 8156, 8200, 9000, 9999):
        cosine = 0.5 * (1 + np.cos(np.pi * (step - 1000) / (steps - 1000)))
        expected = peak * (step / 1000 if step < 1000 else max(0.1, cosine))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert float(rate(9000)) == pytest.approx(0.1 * peak)
    ours = schedule(Optim(peak_lr=peak, warmup=1000.0, end_lr=0.1 * peak), steps)
    assert float(ours(9000)) > 1.2 * float(rate(9000))  # end_lr alone is another schedule
