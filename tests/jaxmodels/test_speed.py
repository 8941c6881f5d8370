"""What a run reports about its speed: MFU on known chips, goodput, a trace of some steps."""

import json
import time

import jax
import pytest

import jaxmodels
from jaxmodels import sizes
from jaxmodels.errors import DONE, USAGE, Problem
from jaxmodels.runtime import platform
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.planning import chips
from jaxmodels.runtime.planning.plan import Workload, useful_flops
from jaxmodels.runtime.runs.outcome import Outcome
from jaxmodels.runtime.step import StepMetrics
from jaxmodels.runtime.training.profiler import parse_window
from tests.jaxmodels.helpers import train


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v2", 23e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_what_jax_calls_a_device(kind, flops):
    assert chips.peak_flops(kind) == flops


def test_operations_of_a_step_are_six_for_each_weight_and_token():
    """Kaplan et al. 2020 (arXiv:2001.08361): 6N for each token, and what attention adds."""
    package = jaxmodels.arch("charlm")
    config, recipe = package.PRESETS["tiny"], package.RECIPES["tiny"]
    job = Workload(package, config, recipe)
    shapes = sizes.shapes("charlm", config)
    kernels = sum(leaf.size for path, leaf in shapes.items() if path.endswith("/kernel"))
    head = 0 if "head/kernel" in shapes else config.vocab * config.dim
    attention = 2 * config.layers * config.dim * config.context
    expected = 6 * job.tokens * (kernels + head + attention)
    assert useful_flops(job) == pytest.approx(expected, rel=0.02)
    assert useful_flops(job.with_recipe(remat="full")) == useful_flops(job)


@pytest.mark.slow
def test_useful_operations_are_the_same_wherever_they_are_counted(monkeypatch):
    """On a TPU charlm turns its rotary pairs by a product that only moves numbers."""
    package = jaxmodels.arch("charlm")
    job = Workload(package, package.PRESETS["tiny"], package.RECIPES["tiny"])
    here = useful_flops(job)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert useful_flops(job) == here


def test_a_run_on_a_known_chip_tells_its_mfu_and_its_goodput(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chips, "peak_flops", lambda kind: 1e12)
    assert train(tmp_path / "run", "--steps", "10") == DONE
    records = read(tmp_path / "run" / "metrics.jsonl")
    package = jaxmodels.arch("charlm")
    vocab = json.loads((tmp_path / "run/config.json").read_text())["model"]["vocab"]
    config = package.PRESETS["tiny"]
    job = Workload(
        package, type(config)(**vars(config) | {"vocab": vocab}), package.RECIPES["tiny"]
    )
    for record in records[1:]:
        seconds = job.tokens / record["tokens_per_second"]
        share = useful_flops(job) / seconds / (1e12 * jax.device_count())
        assert record["mfu"] == pytest.approx(share, rel=0.02, abs=1e-4)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mfu"] > 0
    assert 0 < summary["goodput"] < 1
    assert "goodput" in capsys.readouterr().err


def test_goodput_is_the_share_of_time_in_steps():
    outcome = Outcome()
    assert outcome.goodput is None
    outcome.seconds |= {"start": 10.0, "train": 30.0, "data": 2.0, "eval": 5.0, "save": 3.0}
    assert outcome.goodput == 0.6


@pytest.mark.parametrize("inline", [True, False])
def test_waiting_for_a_step_counts_as_training(tmp_path, monkeypatch, inline):
    """Wherever it happens: after the step, in the next one, before an evaluation or a save."""
    read_metrics = StepMetrics.read

    def slow(metrics):
        time.sleep(0.1)
        return read_metrics(metrics)

    monkeypatch.setattr(StepMetrics, "read", slow)
    monkeypatch.setattr(platform, "computes_inline", lambda parameters: inline)
    flags = ["--steps", "4", "--eval-every", "2", "--save-every", "3"]
    assert train(tmp_path / "run", *flags) == DONE
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]["train"] >= 0.4


@pytest.mark.slow
def test_a_window_of_steps_is_traced(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "--steps", "10", "--profile", "3:4") == DONE
    assert f"steps 3 to 4 traced: {run / 'profile'}" in capsys.readouterr().err
    found = {path.name.rpartition(".")[2] for path in (run / "profile").rglob("*.*")}
    assert {"pb", "gz"} <= found
    assert jaxmodels.__main__.main(["verify", str(run)]) == DONE


@pytest.mark.slow
def test_a_run_that_ends_within_its_window_leaves_the_trace(tmp_path):
    run = tmp_path / "run"
    assert train(run, "--steps", "10", "--profile", "10:10") == DONE
    assert list((run / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "9:11", "a:b", "1:2:3", "-1:3", ":"])
def test_what_is_no_window_is_refused(text, tmp_path):
    with pytest.raises(Problem, match="is not a range of steps") as caught:
        parse_window(text, tmp_path, steps=10)
    assert caught.value.exit_code == USAGE


def test_a_quick_step_among_slow_ones_does_not_raise_the_speed():
    """Steps of 1 s, and one of 1 ms as an asynchronous device gives: 100 tokens take longer."""
    outcome = Outcome()
    for seconds in [1.0, 1.0, 0.001, 1.0]:
        outcome.smooth({"tokens_per_second": 100 / seconds}, seconds)
    assert outcome.tokens_per_second == pytest.approx(100 / outcome.step_seconds)
    assert outcome.tokens_per_second < 112


def test_all_time_of_a_call_is_told(tmp_path, monkeypatch):
    """What lies outside the steps, such as reading the data, belongs to the start."""

    def slow(job):
        time.sleep(0.2)
        return Outcome(step=30, steps=30)

    monkeypatch.setattr("jaxmodels.runtime.training.train.train", slow)
    assert train(tmp_path / "run") == DONE
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seconds"]["start"] >= 0.2
