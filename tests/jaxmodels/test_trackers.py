"""--report-to: which trackers, what they get, and that a failing one ends no run."""

import json
import sys

import pytest

from jaxmodels import extras
from jaxmodels.__main__ import main
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import TRACKERS, Recipe
from jaxmodels.runtime import trackers
from jaxmodels.runtime.metrics import MetricsLog, read


class Recorder:
    """Stands for the packages wandb and trackio: records the calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **options):
            self.calls.append((name, args, options))
            return self

        return call

    def named(self, name):
        return [(args, options) for called, args, options in self.calls if called == name]


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, found)
    return found


def test_names_are_those_that_exist():
    assert tuple(trackers.KINDS) == TRACKERS
    assert Recipe(report_to="tensorboard,wandb").trackers == ("tensorboard", "wandb")
    assert Recipe(report_to="none").trackers == ()


@pytest.mark.parametrize("given", ["mlflow", "tensorboard, wandb", "wandb,none", ""])
def test_unknown_names_are_refused(given):
    with pytest.raises(Problem, match="report-to") as caught:
        Recipe(report_to=given)
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_numbers_settings_and_name_reach_the_tracker(recorder, tmp_path, name):
    (tmp_path / "config.json").write_text('{"arch": "charlm", "model": {"dim": 8}, "data": {}}')
    log = MetricsLog(tmp_path, 0, [name])
    log.write({"step": 1, "loss": 0.5})
    log.close()
    ((_, started),) = recorder.named("init")
    assert started["config"] == {"arch": "charlm", "model": {"dim": 8}}
    assert started["project"] == "jaxmodels"
    ((args, options),) = recorder.named("log")
    assert {**args[0], **options} == {"step": 1, "loss": 0.5}
    assert len(recorder.named("finish")) == 1


@pytest.mark.parametrize(("name", "key"), [("wandb", "id"), ("trackio", "name")])
def test_a_resumed_run_continues_the_same_one(recorder, tmp_path, name, key):
    for step in (0, 5):
        MetricsLog(tmp_path, step, [name]).close()
    first, second = (options for _, options in recorder.named("init"))
    assert first[key] == second[key]
    assert first["resume"] == "allow"
    assert json.loads((tmp_path / trackers.NAMES).read_text()) == {name: first[key]}


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_dropped(recorder, tmp_path, monkeypatch, capsys, when):
    def fail(*_, **__):
        raise RuntimeError("no route to host\nand more")

    monkeypatch.setattr(recorder, when, fail, raising=False)
    log = MetricsLog(tmp_path, 0, ["wandb", "tensorboard"])
    for step in (1, 2):
        log.write({"step": step, "loss": 0.5})
    log.close()
    err = capsys.readouterr().err
    assert err.count("wandb failed") == 1
    assert "no route to host" in err
    assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert list((tmp_path / "tensorboard").iterdir())


def test_none_writes_no_events(tmp_path):
    MetricsLog(tmp_path, 0, ()).close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}


def test_a_package_that_is_missing_is_named_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extras, "installed", lambda module: module != "wandb")
    words = ["train", "charlm:tiny", "--data", "text:nothing", "--out", str(tmp_path / "run")]
    assert main([*words, "--report-to", "wandb"]) == USAGE
    assert "pip install 'jaxmodels[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_and_biases_without_network(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 1):
        log = MetricsLog(tmp_path, step, ["wandb"])
        log.write({"step": step + 1, "loss": 0.5})
        log.close()
    assert "failed" not in capsys.readouterr().err
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
