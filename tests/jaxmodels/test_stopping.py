"""Signals and --max-hours, at any moment: nothing is lost."""

import json
import os
import signal
import time

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, INTERRUPTED, STOPPED, USAGE
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.runs import rundir
from tests.jaxmodels.helpers import SMALL, command, losses, params, same, train


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_committed_checkpoint(tmp_path, number):
    run = tmp_path / "run"
    process = command("train", "charlm:tiny", "--out", str(run), *SMALL, "--steps", "100000")
    for line in process.stderr:
        if line.startswith("step 1/"):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait() == (STOPPED if number == signal.SIGTERM else 130)
    newest = rundir.steps(run / "checkpoints")[-1]
    assert not damage(run / "checkpoints" / str(newest))
    assert f"continue:  jaxmodels train --out {run}" in rest
    assert json.loads((run / "summary.json").read_text())["step"] == newest
    assert [step for step, _ in losses(run)] == list(range(1, newest + 1))


@pytest.mark.slow
def test_max_hours_stops_in_time(tmp_path):
    run, start = tmp_path / "run", time.monotonic()
    flags = [*SMALL, "--steps", "1000000", "--max-hours", str(20 / 3600)]
    assert command("train", "charlm:tiny", "--out", str(run), *flags).wait() == STOPPED
    assert time.monotonic() - start < 20
    assert rundir.steps(run / "checkpoints")
    assert json.loads((run / "summary.json").read_text())["reason"] == "time is up"


@pytest.mark.slow
def test_a_signal_before_jax_is_imported_is_no_crash(tmp_path):
    process = command("train", "charlm:tiny", "--out", str(tmp_path / "run"), *SMALL)
    while not (tmp_path / "run" / ".lock").exists():
        time.sleep(0.005)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == STOPPED, said
    assert "no step was done" in said
    assert "Traceback" not in said
    assert f"continue:  jaxmodels train charlm:tiny --out {tmp_path / 'run'} --steps 30" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, STOPPED), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_ends_the_preparation_of_the_data(tmp_path, monkeypatch, capsys, number, code):
    """Sent while the first piece of text is read: nothing is prepared, and the rest not read."""
    import data_pipelines.sources

    class Reading(data_pipelines.sources.Reading):
        def __iter__(self):
            os.kill(os.getpid(), number)
            yield from super().__iter__()
            raise AssertionError("the text was read to its end")

    monkeypatch.setattr("data_pipelines.prepare.Reading", Reading)
    run = tmp_path / "run"
    assert train(run) == code
    assert "no step was done, so there is no checkpoint" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {".lock", "summary.json", "digests.json"}
    monkeypatch.undo()
    assert train(run, "--steps", "2") == DONE


@pytest.mark.slow
def test_a_signal_at_the_start_of_a_resumed_run_keeps_its_checkpoint(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train(run, "--steps", "10") == DONE
    before = params(run, 10)

    def opened(*_, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        kwargs["progress"]("reading", 0, 1)

    monkeypatch.setattr("data_pipelines.pipelines.open_data", opened)
    capsys.readouterr()
    assert main(["train", "--out", str(run), "--steps", "20", "--json"]) == STOPPED
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert (summary["step"], summary["checkpoint"], summary["reason"]) == (10, 10, "SIGTERM")
    assert f"continue:  jaxmodels train --out {run}\n" in captured.err
    assert same(params(run, 10), before)


@pytest.mark.slow
def test_too_few_hours_say_how_many_are_needed_and_do_not_spin(tmp_path, capsys):
    """A loop of calls that each exit with 75 ends at the second one that does no step."""
    run, few = tmp_path / "run", ["--max-hours", "0.0001"]
    assert train(run, *few) == STOPPED
    said = capsys.readouterr().err
    assert "no step was done" in said
    needed = said.split("give --max-hours ")[1].split()[0]
    assert float(needed) >= 0.01
    assert train(run, *few) == USAGE
    assert "twice in a row" in capsys.readouterr().err
    assert train(run, "--max-hours", "1") == DONE
    assert train(run, "--steps", "40", *few) == STOPPED
    assert json.loads((run / "summary.json").read_text())["step"] == 30


def test_hours_are_no_negative_number(tmp_path):
    for hours in ("-1", "nan"):
        assert train(tmp_path / "run", "--max-hours", hours) == USAGE
