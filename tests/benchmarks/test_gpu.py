"""What one GPU reaches: cases, goals, the table, and the script; nothing is timed."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.records import Absent
from benchmarks.step import Step
from jaxmodels.cli import parse

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def made(preset, batch, mfu=0.5, tokens=800_000.0, times=1.2):
    """A record of suite `step`."""
    return {
        "case": preset,
        "settings": {"batch": batch},
        "median": 40.25,
        "tokens_per_second": tokens,
        "mfu": mfu,
        "times_as_fast_as": {} if times is None else {"PyTorch compiled": times},
        "peak_bytes": 3 << 30,
    }


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu, "memory", lambda: 59.3)


def test_every_case_is_measured_and_judged_in_one_table(on_a_gpu, monkeypatch, capsys, tmp_path):
    seen = []

    def main(words):
        seen.append(words)
        print("its own table")
        preset, batch = words[1], int(words[3])
        return [made(preset, batch, mfu=0.4 if "wigip" in preset else 0.5)]

    monkeypatch.setattr(gpu.step, "main", main)
    records = gpu.main(["--out", str(tmp_path)])
    assert [record["case"] for record in records] == [case.preset for case in gpu.CASES]
    assert ["--no-compile" not in words for words in seen] == [True, False, False]
    assert all("--no-eager" in words and "bfloat16" in words for words in seen)
    assert "--objective dense" in " ".join(seen[2])
    out, err = capsys.readouterr()
    assert "its own table" in err
    lines = out.strip().splitlines()
    assert lines[0].startswith("### On ")
    assert len(lines) == 3 + len(gpu.CASES)
    assert "MFU 45%: met; 1.0 × PyTorch: met" in lines[3]
    assert "700,000 tokens/s: met" in lines[4]
    assert "MFU 45%: missed" in lines[5]


def test_a_step_that_fails_does_not_stop_the_others(on_a_gpu, monkeypatch, capsys):
    def main(words):
        if "wikigpt" in words[1]:
            raise RuntimeError("out of memory\ndetails")
        return [made(words[1], 8, mfu=None, times=None)]

    monkeypatch.setattr(gpu.step, "main", main)
    with pytest.raises(RuntimeError):
        gpu.main([])
    out = capsys.readouterr().out
    assert "failed: out of memory |" in out
    assert "MFU 45%: unknown" in out
    assert out.count("\n| ") == 2 + len(gpu.CASES)


def test_nothing_begins_after_its_minutes(on_a_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu.step, "main", lambda words: pytest.fail("begun"))
    assert gpu.main(["--minutes", "0"]) == []
    assert capsys.readouterr().out.count("not begun") == len(gpu.CASES)


@pytest.mark.parametrize(("gib", "batch"), [(59.3, 32), (17, 8), (6, 2)])
def test_batches_fit_the_memory(gib, batch):
    found = gpu.words(gpu.CASES[0], gpu.Gpu(), gib)
    assert int(found[3]) == batch


@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize("case", gpu.CASES, ids=[case.preset for case in gpu.CASES])
def test_suite_step_takes_the_options_of_every_case(case, tiny):
    found = parse(Step, gpu.words(case, gpu.Gpu(tiny=tiny), 100.0), "bench step")
    assert found.preset == (case.tiny if tiny else case.preset)
    assert (found.eager, found.compile) == (case.peer and tiny, case.peer and not tiny)
    assert found.isolated


def test_a_step_that_is_too_large_for_the_gpu_is_no_failure(on_a_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "memory", lambda: 29.6)
    monkeypatch.setattr(gpu.step, "main", lambda words: [made(words[1], int(words[3]))])
    assert len(gpu.main([])) == 2
    assert "needs 32 GiB, JAX has 30" in capsys.readouterr().out


def test_without_a_gpu_the_suite_is_absent():
    with pytest.raises(Absent, match="JAX finds no GPU"):
        gpu.main([])


# --- the script


def script(python, *words, tmp_path):
    file = tmp_path / "python"
    file.write_text(f"#!/bin/bash\n{python}\n")
    file.chmod(0o755)
    return subprocess.run(
        ["bash", str(SCRIPT), *words],
        env=os.environ | {"PYTHON": str(file), "CALLS": str(tmp_path / "calls")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_refuses_without_a_gpu(tmp_path):
    done = script("exit 1", tmp_path=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX finds no GPU")
    assert not done.stdout


def test_the_script_runs_both_parts_and_gives_back_a_failure(tmp_path):
    python = 'echo "$@" >> "$CALLS"\n[[ $2 == pytest ]] && exit 5\n[[ $2 != jaxmodels ]] || exit 3'
    done = script(python, "--rounds", "3", tmp_path=tmp_path)
    calls = (tmp_path / "calls").read_text()
    assert done.returncode == 3
    assert "-k test_cudnn_is_the_plain_form" in calls
    assert "-m jaxmodels bench gpu --rounds 3" in calls
    assert "finds no GPU" not in done.stderr
