"""The running average of the parameters: its values, where it is saved, and what uses it."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.planning.plan import Workload, abstract_state, state_bytes
from jaxmodels.runtime.runs.checkpoint import Checkpoints
from jaxmodels.runtime.runs.state_io import restore
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import init, train_step
from tests.jaxmodels import toy
from tests.jaxmodels.helpers import params, same, train

charlm = jaxmodels.arch("charlm")

DECAY = 0.4


def trained(recipe, steps=5, package=None):
    """The parameters after each step of the toy, and its last state."""
    package, mesh = package or toy.package(), make_mesh()
    tx = optimiser(recipe.optim, 0.5)
    graphdef, fresh, abstract = init(package, toy.CONFIG, recipe, tx, mesh)
    step = train_step(package, graphdef, tx, lambda _: 0.5, recipe, abstract)
    state, seen = fresh(), []
    for _ in range(steps):
        state, _ = step(state, put_batch(toy.batch(), mesh))
        seen.append({path: np.array(x) for path, x in state.params.items()})
    return seen, state, abstract


def average(seen):
    """By its definition, in float64."""
    mean = {path: x.astype(np.float64) for path, x in seen[0].items()}
    for t, after in enumerate(seen[1:], start=1):
        keep = min(DECAY, (1 + t) / (10 + t))
        mean = {path: keep * x + (1 - keep) * after[path] for path, x in mean.items()}
    return mean


@pytest.mark.parametrize("changes", [{}, {"accum": 2}])
def test_it_is_the_average_of_its_definition(changes):
    seen, state, _ = trained(replace(toy.RECIPE, ema_decay=DECAY, **changes), steps=9)
    for path, expected in average(seen).items():
        np.testing.assert_allclose(state.ema[path], expected, rtol=1e-6, atol=1e-7)
    assert any(np.abs(state.ema[path] - seen[-1][path]).max() > 1e-4 for path in seen[-1])


def test_training_itself_is_not_changed():
    plain, state, _ = trained(toy.RECIPE)
    with_it, _, _ = trained(replace(toy.RECIPE, ema_decay=DECAY))
    assert same(plain[-1], with_it[-1])
    assert state.ema is None
    assert state.weights == state.params


def test_what_commit_writes_is_averaged_and_what_is_frozen_is_not_kept():
    def commit(model, aux):
        model.head.bias.set_value(model.head.bias[...] + 1)

    made = toy.package(commit=commit, COMMITTED=("head/bias",))
    optim = replace(toy.RECIPE.optim, lr_scale=(("embed/*", 0.0),))
    seen, state, _ = trained(replace(toy.RECIPE, ema_decay=DECAY, optim=optim), package=made)
    assert state.ema.keys() == {"head/bias", "head/kernel"}
    np.testing.assert_allclose(state.ema["head/bias"], average(seen)["head/bias"], rtol=1e-6)
    assert state.weights["embed/embedding"] is state.params["embed/embedding"]


def test_a_checkpoint_gives_it_back_bit_for_bit(tmp_path):
    _, state, abstract = trained(replace(toy.RECIPE, ema_decay=DECAY))
    keeper = Checkpoints(tmp_path / "checkpoints", 2)
    keeper.save(state, {}, {})
    keeper.wait()
    back = restore(tmp_path / "checkpoints" / "5", abstract).state
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    plain = Checkpoints(tmp_path / "plain", 2)
    plain.save(state._replace(ema=None), {}, {})
    plain.wait()
    assert {p.name for p in (tmp_path / "plain" / "5").iterdir()} == {
        *("params", "train", "data.json", "manifest.json")
    }


def test_it_lies_where_its_parameter_lies_and_is_planned_for():
    job = Workload(charlm, charlm.PRESETS["tiny"], Recipe(ema_decay=0.999))
    mesh = jax.sharding.AbstractMesh(
        (2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    state = abstract_state(job, mesh)[1]
    for path, leaf in state.ema.items():
        assert leaf.sharding == state.params[path].sharding
    parts = state_bytes(state)
    assert parts["ema"] == parts["parameters"]
    plain = state_bytes(abstract_state(job.with_recipe(ema_decay=0.0), mesh)[1])
    assert parts == {**plain, "ema": parts["parameters"]}


@pytest.mark.parametrize("decay", ["1", "-0.1", "nan"])
def test_an_impossible_decay_is_refused(decay, tmp_path, capsys):
    assert train(tmp_path / "run", "--ema-decay", decay) == USAGE
    assert "ema_decay" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("ema") / "run"
    flags = ["--steps", "6", "--eval-every", "3", "--save-every", "3", "--eval-batches", "99"]
    assert train(out, *flags, "--ema-decay", "0.9", "--optim.warmup", "0") == DONE
    return out


def tree(folder):
    from bridge.storage.orbax import read_tree

    return {name.replace(".", "/"): t.read() for name, t in read_tree(folder)[0].items()}


@pytest.mark.slow
def test_a_run_says_which_weights_and_each_verb_takes_those_asked_for(run, capsys, tmp_path):
    raw, mean = (tree(run / "checkpoints" / "6" / name) for name in ("params", "ema"))
    assert not same(raw, mean)
    best = run / "checkpoints" / "6"
    assert same(params(run, 6), mean)

    def weights(choice):
        tensors = bridge.open_checkpoint(best, weights=choice).tensors
        return {path: tensors[path].read() for path in raw}

    assert same(weights("raw"), raw)
    assert same(weights("ema"), mean)
    losses = {}
    for choice in ("raw", "ema", None):
        capsys.readouterr()
        asked = ["--weights", choice] if choice else []
        assert main(["eval", str(best), "--json", *asked]) == DONE
        losses[choice] = json.loads(capsys.readouterr().out)["loss"]
        dst = tmp_path / str(choice)
        assert main(["convert", str(best), str(dst), *asked]) == DONE
        tensors = bridge.open_checkpoint(dst).tensors
        expected = raw if choice == "raw" else mean
        assert same({path: tensors[path].read() for path in raw}, expected)
        words = ["generate", str(best), "--prompt", "a", "--max-new-tokens", "2", *asked]
        assert main(words) == DONE
    told = read(run / "metrics.jsonl")[-1]["valid_loss"]
    assert losses[None] == losses["ema"] == pytest.approx(told, rel=1e-6)
    assert losses["raw"] != losses["ema"]
    capsys.readouterr()
    assert main(["inspect", str(run)]) == DONE
    assert "running average (ema)" in capsys.readouterr().out
    moments = tmp_path / "moments"
    assert main(["convert", str(best), str(moments), "--optimizer"]) == DONE
    tensors = bridge.open_checkpoint(moments).tensors
    assert same({path: tensors[path].read() for path in raw}, raw)


@pytest.mark.slow
def test_resuming_is_exact(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "6")
    assert main(["train", "--out", str(again)]) == DONE
    for name in ("params", "ema", "train"):
        one, two = (tree(folder / "checkpoints" / "6" / name) for folder in (run, again))
        assert same(one, two), name


def test_weights_that_are_not_there_are_refused(tmp_path):
    keeper = Checkpoints(tmp_path / "checkpoints", 2)
    keeper.save(trained(toy.RECIPE, steps=1)[1], {}, {})
    keeper.wait()
    for choice, said in (("ema", "no average"), ("other", "cannot be")):
        with pytest.raises(Problem, match=said) as caught:
            bridge.open_checkpoint(tmp_path / "checkpoints" / "1", weights=choice)
        assert caught.value.exit_code == USAGE
