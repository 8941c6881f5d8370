"""jaxmodels plan without libtpu: invented compilers, exit codes, messages; what is estimated."""

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jaxmodels import extras
from jaxmodels.__main__ import main
from jaxmodels.commands import plan as command
from jaxmodels.errors import INTERNAL, Problem
from jaxmodels.runtime.planning import tpu
from jaxmodels.runtime.planning.chips import CHIPS, GIB, topology
from jaxmodels.runtime.planning.estimate import Estimate, Setting, head_counts, settings
from jaxmodels.runtime.planning.isolated import ProcessDied, run_isolated
from jaxmodels.runtime.planning.plan import TooLarge
from tests.jaxmodels.planning import CONTRACT, compiled_of, job_of


@pytest.fixture
def invented(monkeypatch):
    """A compiler that needs a GiB for each sequence on a device, half of it with remat."""
    calls = []

    def compile_isolated(package, config, recipe, name):
        calls.append(recipe)
        data = int(recipe.mesh.partition(",")[0].partition("=")[2] or topology(name).devices)
        size = int(recipe.batch / data * GIB * (0.5 if recipe.remat == "full" else 1))
        if size > CHIPS["v5e"].usable:
            raise TooLarge(size, 3.0)
        return compiled_of(size)

    monkeypatch.setattr(tpu, "prepare", lambda: None)
    monkeypatch.setattr(tpu, "compile_isolated", compile_isolated)
    return calls


def run(capsys, *argv):
    code = main(["plan", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_what_fits_is_reported(invented, capsys):
    argv = ("wikigpt:tiny", "--topology", "v5e:2x2", "--hours", "2", "--batch", "8")
    code, out, err = run(capsys, *argv, "--json")
    result = json.loads(out)
    assert code == 0
    assert set(result) >= CONTRACT
    assert result["fits"]
    assert result["hbm_per_device_bytes"] == 2 * GIB
    budget = result["budget"]
    assert budget["tokens"] == budget["steps"] * 8 * 32
    assert budget["steps"] == int(7200 / result["roofline_step_seconds"])
    assert result["hours_at_least"] == pytest.approx(200 * result["roofline_step_seconds"] / 3600)
    assert "compiling" in err
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "fits: 2.00 of 15.75 GiB" in out
    assert "in 2 hours at most" in out


@pytest.mark.slow
def test_what_does_not_fit_exits_with_7_and_names_what_does(invented, capsys):
    code, out, err = run(capsys, "wikigpt:tiny", "--topology", "v5e:2x2", "--batch", "80", "--json")
    result = json.loads(out)
    assert code == 7
    assert set(result) >= CONTRACT
    assert not result["fits"]
    assert result["hbm_per_device_bytes"] == 20 * GIB
    assert result["nearest"]["remat"] == "full"
    assert result["nearest"]["fits"]
    assert "needs 20.0 GiB and has 15.8" in err.replace("\n         ", " ")
    assert result["nearest"]["flags"] in err
    code, out, err = run(capsys, "wikigpt:tiny", "--topology", "v5e:2x2", "--batch", "2048")
    assert code == 7
    assert not out
    assert "the nearest settings that fit: --mesh data=4,model=1 --batch" in err


@pytest.mark.slow
def test_search_prints_the_fastest_first(invented, capsys):
    code, out, err = run(capsys, "wikigpt:tiny", "--topology", "v5e:2x2", "--search", "--json")
    result = json.loads(out)
    assert code == 0
    speeds = [row.get("tokens_per_second_bound", 0) for row in result["frontier"]]
    assert speeds == sorted(speeds, reverse=True)
    assert result["flags"] == result["frontier"][0]["flags"]
    assert result["fits"]
    assert len(invented) == len(speeds) <= 8
    assert "compiling" in err
    code, out, _ = run(capsys, "wikigpt:tiny", "--topology", "v5e:2x2", "--search")
    assert code == 0
    assert "tokens/s" in out.splitlines()[0]


@pytest.mark.slow
def test_search_begins_nothing_after_its_time(invented, capsys):
    argv = ("wikigpt:tiny", "--topology", "v5e:2x2", "--search", "--minutes", "0")
    code, _, err = run(capsys, *argv)
    assert (code, invented) == (7, [])
    assert "--minutes" in err


def test_a_small_preset_batch_is_raised_and_told(invented, capsys):
    code, out, err = run(capsys, "wikigpt:tiny", "--topology", "v5e:8x8", "--json")
    assert code == 0
    assert json.loads(out)["batch"] == 64
    assert "planned with --batch 64" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--topology", "v5e:4x5"], ["v5e:4x5", "v5e:4x4"]),
        (["--topology", "v5litepod-16"], ["v5e:4x4"]),
        (["--topology", "v4-16"], ["v4:2x2x2"]),
        (["--topology", "v9:2x2"], ["v2, v3, v4"]),
        ([], ["--topology is missing"]),
        (["--topology", "v5e:2x2", "--mesh", "data=3"], ["3 devices", "v5e:2x2 has 4"]),
        (
            ["--topology", "v5e:2x4", "--mesh", "model=8"],
            ["heads cannot be split over 8", "--mesh"],
        ),
        (["--topology", "v5e:2x2", "--batch", "6"], ["6 sequences", "multiple of 4"]),
        (["--topology", "v5e:2x2", "--hours", "-1"], ["--hours"]),
    ],
)
def test_usage(invented, capsys, argv, words):
    code, out, err = run(capsys, "wikigpt:tiny", *argv)
    assert (code, out, invented) == (2, "", [])
    assert all(word in " ".join(err.split()) for word in words), err


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(extras, "installed", lambda module: module != "libtpu")
    for name, value in tpu.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, "wikigpt:tiny", "--topology", "v5e:2x2")
    assert code == 2
    assert "pip install 'jaxmodels[tpu]'" in err


def test_a_compiler_that_fails_is_no_crash_of_ours(monkeypatch, capsys):
    def died(*_):
        raise ProcessDied(-11, "stack overflow")

    monkeypatch.setattr(tpu, "prepare", lambda: None)
    monkeypatch.setattr(tpu, "run_isolated", died)
    code, _, err = run(capsys, "wikigpt:tiny", "--topology", "v5e:2x2")
    assert code == INTERNAL
    assert "could not compile" in err
    assert "exit code -11" in err


def test_settings_come_from_a_file_and_flags_win(invented, capsys, tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"recipe": {"batch": 8, "dtype": "bfloat16"}, "model": {"dim": 32}}))
    argv = ("wikigpt:tiny", "--topology", "v5e:2x2", "--config", str(file), "--batch", "4")
    code, out, _ = run(capsys, *argv, "--json")
    result = json.loads(out)
    assert (code, result["batch"], result["dtype"]) == (0, 4, "bfloat16")
    assert command.resolve([*argv, "--remat"])[1].recipe.remat == "full"


def test_settings_divide_devices_and_heads():
    job = job_of()
    found = list(settings(job, 8))
    heads = head_counts(job.config)
    assert {one.data * one.model for one in found} == {8}
    assert all(count % one.model == 0 for one in found for count in heads)
    assert all(one.batch % one.data == 0 for one in found)
    assert len(found) == len(set(found))


def test_estimates_know_that_remat_saves_and_that_batches_cost():
    estimate = Estimate(job_of(), topology("v5e:2x2"))
    small, large = Setting(4, 1, 8, "none"), Setting(4, 1, 64, "none")
    assert estimate.bytes(replace(large, remat="full")) < estimate.bytes(large)
    assert estimate.bytes(small) < estimate.bytes(large)
    assert estimate.seconds(replace(large, remat="full")) >= estimate.seconds(large)
    estimate.learn(large, 10 * GIB)
    assert estimate.bytes(large) == pytest.approx(10 * GIB, rel=1e-6)
    assert estimate.bytes(small) < 2 * GIB


def test_a_call_apart_answers_raises_or_dies():
    assert run_isolated(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run_isolated(divmod, 7, 0)
    with pytest.raises(ProcessDied) as died:
        run_isolated(os.abort)
    assert died.value.code == -6


def test_a_call_apart_ends_with_the_process_that_waits_for_it(tmp_path):
    file = tmp_path / "pid"
    code = """
import os, sys, time
from jaxmodels.runtime.planning.isolated import run_isolated

def sleep(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    run_isolated(sleep, sys.argv[1])
"""
    (tmp_path / "waits.py").write_text(code)
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "waits.py"), str(file)], env=ours)
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    stat = Path(f"/proc/{file.read_text()}/stat")

    def runs() -> bool:
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

    while runs() and time.monotonic() < until:
        time.sleep(0.02)
    assert not runs()


def test_errors_come_whole_from_the_other_process():
    again = copy.copy(TooLarge(5, 1.5))
    assert (again.needed, again.seconds) == (5, 1.5)
    problem = copy.copy(Problem("a", why="b", fix="c", exit_code=7))
    assert (problem.what, problem.why, problem.fix, problem.exit_code) == ("a", "b", "c", 7)
