"""Statistics of parameters and gradients: the numbers, the file, the plots."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.reporting import plots
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.stats import NAMES
from jaxmodels.runtime.step import init, train_step
from tests.children import printed, simulated
from tests.jaxmodels.helpers import params, same, train

charlm = jaxmodels.arch("charlm")

RATE = 0.5


def two_steps(mesh_spec: str = ""):
    """Parameters before and after, statistics and gradient norm of two steps of plain SGD."""
    recipe, config = Recipe(stats_every=2, accum=2, mesh=mesh_spec), charlm.PRESETS["tiny"]
    tx, mesh = optax.sgd(RATE), make_mesh(mesh_spec)
    graphdef, fresh, abstract = init(charlm, config, recipe, tx, mesh)
    step, state = train_step(charlm, graphdef, tx, lambda _: RATE, recipe, abstract), fresh()
    rng, found = np.random.default_rng(0), []
    for _ in range(2):
        before = {path: np.array(leaf) for path, leaf in state.params.items()}
        batch = {"tokens": rng.integers(0, config.vocab, (16, 33)).astype(np.int32)}
        state, told = step(state, put_batch(batch, mesh))
        after = {path: np.array(leaf) for path, leaf in state.params.items()}
        found.append((before, after, np.array(told.stats), told.read()["grad_norm"]))
    return found


@pytest.mark.slow
def test_the_numbers_are_those_of_numpy():
    """SGD's updates are the gradients times the rate, so both can be had from the parameters."""
    (_, _, first, _), (before, after, second, norm) = two_steps()
    assert not first.any()
    table = dict(zip(sorted(before), second, strict=True))
    for path, numbers in table.items():
        row, p, update = dict(zip(NAMES, numbers, strict=True)), before[path], after[path]
        update = update - p
        size = np.abs(update) / RATE
        expected = {
            "grad_norm": np.sqrt((size**2).sum()),
            "grad_mean_abs": size.mean(),
            "grad_exploding": 0.0,
            "mean": p.mean(),
            "std": p.std(),
            "min": p.min(),
            "max": p.max(),
            "mean_abs": np.abs(p).mean(),
            "norm": np.sqrt((p**2).sum()),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-3, atol=2e-6, err_msg=path)
        ratio = row["update_ratio"] * max(expected["norm"], 1e-12)
        np.testing.assert_allclose(ratio, RATE * expected["grad_norm"], rtol=1e-3, atol=2e-6)
    column = second[:, NAMES.index("grad_norm")]
    np.testing.assert_allclose(np.sqrt((column**2).sum()), norm, rtol=1e-5)


def test_vanishing_and_exploding_gradients_are_counted():
    from jaxmodels.runtime.stats import measure

    g = jax.numpy.array([0.0, 9e-7, -9e-7, 2e-6, 99.0, -101.0, 1e6, 1.0])
    row = dict(zip(NAMES, measure({"a": g}, {"a": g}, {"a": g * 0.5})[0].tolist(), strict=True))
    assert (row["grad_vanishing"], row["grad_exploding"]) == (3 / 8, 2 / 8)
    assert row["update_ratio"] == pytest.approx(0.5)


@pytest.mark.slow
def test_a_sharded_step_measures_the_same():
    code = (
        "import json\nfrom tests.jaxmodels.test_stats import two_steps\n"
        "print(json.dumps(two_steps('data=2,model=2')[1][2].tolist()))"
    )
    sharded = np.array(json.loads(printed(code, env=simulated(4))))
    np.testing.assert_allclose(sharded, two_steps()[1][2], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """30 steps, measured every fourth; not to be changed."""
    run = tmp_path_factory.mktemp("stats") / "run"
    assert train(run, "--stats-every", "4") == DONE
    return run


@pytest.mark.slow
def test_a_run_writes_each_measured_step_once_also_when_it_is_resumed(run, tmp_path):
    records = read(run / "stats.jsonl")
    assert [record["step"] for record in records] == [4, 8, 12, 16, 20, 24, 28]
    assert records[0]["params"].keys() == params(run, 30).keys()
    assert records[0]["params"]["embed/embedding"].keys() == {"size", *NAMES}
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "30")
    assert main(["train", "--out", str(again)]) == DONE
    assert read(again / "stats.jsonl") == records
    assert same(params(again, 30), params(run, 30))
    # How often may change, and turning it off leaves what was written.
    assert main(["train", "--out", str(again), "--steps", "40", "--stats-every", "0"]) == DONE
    assert read(again / "stats.jsonl") == records


@pytest.mark.slow
def test_a_run_without_statistics_has_no_file(tmp_path):
    assert train(tmp_path / "run", "--steps", "3") == DONE
    assert not list((tmp_path / "run").glob("stats.*"))
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_plots_are_drawn_and_their_failure_fails_nothing(run, tmp_path, capsys):
    for name in ("loss.png", "stats.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    again = shutil.copytree(run, tmp_path / "again")
    (again / "loss.png").unlink()
    (again / "stats.jsonl").write_text('{"step": 4}\n')
    assert main(["train", "--out", str(again)]) == DONE
    assert "no plot of stats: KeyError" in capsys.readouterr().err
    assert (again / "loss.png").exists()


def test_layers_together():
    row = dict.fromkeys(NAMES, 0.0) | {"size": 1, "norm": 3.0, "grad_norm": 3.0}
    row |= {"update_ratio": 0.1, "grad_vanishing": 1.0}
    other = row | {"size": 3, "norm": 4.0, "grad_norm": 4.0, "grad_vanishing": 0.0}
    lost = row | {"norm": None}
    layers = {"blocks/10/a": row, "blocks/9/a/kernel": row, "blocks/9/a/bias": other, "z": lost}
    found = plots.by_layer(layers)
    assert list(found) == ["blocks/9", "blocks/10", "z"]
    nine = found["blocks/9"]
    assert (nine["norm"], nine["grad_norm"], nine["grad_vanishing"]) == (5.0, 5.0, 0.25)
    assert nine["update_ratio"] == pytest.approx(0.1)
    assert np.isnan(found["z"]["norm"])


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=40), st.integers(1, 40))
def test_running_mean(values, width):
    width = min(width, len(values))
    found = plots.running_mean(np.array(values), width)
    for i, mean in enumerate(found):
        window = values[max(0, i - width // 2) : i + (width + 1) // 2]
        assert mean == pytest.approx(sum(window) / len(window), abs=1e-9)


@given(st.integers(0, 60), st.integers(1, 70), st.sets(st.integers(0, 59)))
def test_thinned_keeps_what_must_be_shown(tmp_path_factory, count, most, marked):
    path = tmp_path_factory.mktemp("thinned") / "lines"
    records = [{"step": i} | ({"valid_loss": 1.0} if i in marked else {}) for i in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"st')
    found, stride = plots.thinned(path, most, always='"valid_loss"')
    steps = [record["step"] for record in found]
    assert steps == sorted(set(steps))
    assert {i for i in marked if i < count} <= set(steps)
    assert set(range(0, count, stride)) <= set(steps)
    assert sum("valid_loss" not in record for record in found) <= most + 1
