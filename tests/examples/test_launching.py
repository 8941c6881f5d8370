"""The launch scripts, run with stand-ins for the cluster's commands and for `jaxmodels`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxmodels
from jaxmodels.commands.train_options import resolve
from jaxmodels.runtime.runs import rundir

ROOT = Path(jaxmodels.__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = ["tpu_pod.sh", "gke_xpk.sh", "slurm.sbatch"]

# What a stand-in does: notes how it was called, and ends with the next of $CODES.
NOTE = """#!{python} -IS
import json, os, sys, time
name, folder = os.path.basename(sys.argv[0]), os.environ["CALLS"]
which = sys.argv[sys.argv.index("--process") + 1] if "--process" in sys.argv else "0"
n = sum(file.startswith(f"{{name}}.{{which}}.") for file in os.listdir(folder))
note = f"{{name}}.{{which}}.{{n}}.json"
with open(f"{{folder}}/.{{note}}", "w") as file:
    json.dump(sys.argv[1:], file)
os.rename(f"{{folder}}/.{{note}}", f"{{folder}}/{{note}}")  # whole, for who counts them meanwhile
if name == "jaxmodels":
    time.sleep(float(os.environ.get("SECONDS_" + which, 0)))
    codes = os.environ.get("CODES_" + which, os.environ["CODES"]).split()
    sys.exit(int(codes[min(n, len(codes) - 1)]))
"""
# The cluster's commands, as far as the scripts use them. xpk: as its own container does.
FIND = 'while [ "$1" != --command ]; do shift; done\n'
CLUSTER = {
    "gcloud": FIND + 'exec bash -c "$2"',
    "xpk": FIND + 'eval "($2) & wait \\$!"',
    "srun": 'exec "$@"',
    "sbatch": 'SLURM_JOB_ID=7 exec bash "$@"',
}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How the stand-ins were called: name → arguments of each call; they stand first in PATH."""
    folder, bin = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    bin.mkdir()
    for name in ("jaxmodels", "scontrol"):
        (bin / name).write_text(NOTE.format(python=sys.executable))
    for name, body in CLUSTER.items():
        (bin / f"note-{name}").write_text(NOTE.format(python=sys.executable))
        (bin / name).write_text(f'#!/bin/bash\nnote-{name} "$@"\n{body}\n')
    for path in bin.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder))
    monkeypatch.setenv("CODES", "0")

    def of(name):
        found = sorted(folder.glob(f"{name}.*"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in found]

    return of


def example_call(script):
    """The call that the script's own comment shows."""
    text = (EXAMPLES / script).read_text().replace(" \\\n#", "")
    (call,) = re.findall(rf"^# {{3}}(.*examples/{re.escape(script)}.*)$", text, re.MULTILINE)
    return call


def launch(command, **kwargs):
    return subprocess.run(["bash", "-c", command], cwd=ROOT, timeout=60, **kwargs).returncode


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_call_that_a_script_shows_trains(script, calls, tmp_path):
    assert subprocess.run(["bash", "-n", EXAMPLES / script]).returncode == 0
    assert launch(example_call(script)) == 0
    (argv,) = calls("jaxmodels")
    assert argv[0] == "train"
    request = resolve(argv[1:])  # the real parser
    arch, preset, options = request.arch, request.preset, request.options
    assert (arch, preset, options.recipe.data) == ("wigip", "1.7b", "c4")
    assert str(options.out) in example_call(script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_arrive_as_they_were_given(script, calls):
    flags = ["charlm:tiny", "--prompt", 'It\'s "so", $HOME  \\ *\n;', "--data", "text:a b.txt"]
    call = example_call(script).partition(f"examples/{script}")[0] + f'examples/{script} "$@"'
    assert subprocess.run(["bash", "-c", call, "bash", *flags], cwd=ROOT).returncode == 0
    (argv,) = calls("jaxmodels")
    assert argv[1:-2] == flags
    assert resolve(argv[1:]).recipe.prompt == flags[2]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_named(script, calls):
    call = example_call(script)
    names = re.findall(r"\b([A-Z_]+)=", call.partition("examples/")[0])
    assert "OUT" in names
    for name in names:
        run = ["bash", "-c", re.sub(rf"\b{name}=\S+", "", call)]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode not in (0, 75)
        assert f"{name}: " in done.stderr
    assert not calls("jaxmodels")


def test_a_pod_is_called_again_only_when_it_can_go_on(calls, monkeypatch):
    killed = " ".join(["137"] * 11)
    ends = (("75 75 0", 0), ("75 6", 6), ("255", 255), ("2", 2), ("137 75 0", 0), (killed, 137))
    for codes, expected in ends:
        monkeypatch.setenv("CODES", f"{codes} 99")
        before = len(calls("jaxmodels"))
        monkeypatch.setenv("CODES", " ".join(["0"] * before + codes.split() + ["99"]))
        assert launch(example_call("tpu_pod.sh")) == expected
        assert len(calls("jaxmodels")) - before == len(codes.split())
    words = calls("gcloud") or calls("note-gcloud")
    assert words[0][:6] == ["compute", "tpus", "tpu-vm", "ssh", "my-pod", "--zone"]
    assert "--worker=all" in words[0]


def test_a_cluster_is_told_which_end_to_start_again_from(calls, monkeypatch):
    monkeypatch.setenv("CODES", "75")
    assert launch(example_call("gke_xpk.sh")) == 75  # by our stand-in; XPK itself only submits
    (words,) = calls("note-xpk")
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["workload", "create"]
    assert flags["--restart-on-exit-codes"] == "75"
    assert 0 < int(flags["--max-restarts"]) < 1000
    assert flags["--command"].startswith("exec ")


AGAIN = [["requeue", "7"]]


def test_a_slurm_job_that_is_killed_again_and_again_ends(calls, monkeypatch):
    monkeypatch.setenv("CODES", "137")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "10")
    assert launch(example_call("slurm.sbatch")) == 137
    assert calls("scontrol") == []


@pytest.mark.parametrize(
    ("code", "queued"), [(0, []), (75, AGAIN), (137, AGAIN), (134, AGAIN), (3, []), (2, [])]
)
def test_a_slurm_job_queues_again_only_when_it_can_go_on(calls, monkeypatch, code, queued):
    monkeypatch.setenv("CODES", str(code))
    assert launch(example_call("slurm.sbatch")) == code
    assert calls("scontrol") == queued
    assert len(calls("jaxmodels")) == 1


def test_the_settings_of_a_slurm_job():
    head, _, body = (EXAMPLES / "slurm.sbatch").read_text().partition("# Trains")
    assert "#SBATCH" not in body
    flags = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", head, re.MULTILINE))
    assert flags["gpus-per-node"] == flags["ntasks-per-node"]  # JAX: one process for each GPU
    assert flags["signal"].startswith("TERM@")  # to the processes, not to the shell
    assert {"requeue", "open-mode"} <= flags.keys()


TWO = [sys.executable, str(EXAMPLES / "two_processes.py"), "charlm:tiny", "--out", "runs/two"]


@pytest.mark.parametrize(
    ("codes", "expected", "rounds"),
    [
        (("0", "0"), 0, 1),
        (("75 75 0", "75 75 0"), 0, 3),
        (("75 3", "75 75"), 3, 2),
        (("137 0", "75 0"), 0, 2),  # one was killed, the other noticed
        (("75 75 75", "134 134 134"), 134, 3),  # again and again, and got nowhere
    ],
)
def test_two_processes_are_started_together(calls, monkeypatch, codes, expected, rounds):
    for i, each in enumerate(codes):
        monkeypatch.setenv(f"CODES_{i}", each)
    monkeypatch.setenv("SECONDS_0", "1")  # the one that fails, when the other has been called
    assert subprocess.run(TWO, timeout=60).returncode == expected
    called = calls("jaxmodels")
    assert len(called) == 2 * rounds
    for pair in zip(called[::2], called[1::2], strict=True):
        assert sorted(argv.pop() for argv in pair) == ["0", "1"]
        assert pair[0] == pair[1]
        assert pair[0][:4] == ["train", "charlm:tiny", "--out", "runs/two"]


def test_a_frozen_process_is_killed_and_both_are_started_again(calls, monkeypatch, tmp_path):
    script = tmp_path / "two_processes.py"
    script.write_text((EXAMPLES / "two_processes.py").read_text().replace("60.0", "0.5"))
    monkeypatch.setenv("CODES_0", "75 0")
    monkeypatch.setenv("SECONDS_1", "50")  # as one does that has no say any more
    start = time.monotonic()
    command = [sys.executable, str(script), "charlm:tiny", "--out", str(tmp_path / "run")]
    assert subprocess.run(command, timeout=60).returncode == 137
    assert time.monotonic() - start < 30
    assert len(calls("jaxmodels")) == 6  # three rounds without a checkpoint


def test_a_process_that_fails_takes_the_other_along(calls, monkeypatch):
    monkeypatch.setenv("CODES_1", "7")
    monkeypatch.setenv("SECONDS_0", "50")
    start = time.monotonic()
    assert subprocess.run(TWO, timeout=60).returncode in (7, 143)
    assert time.monotonic() - start < 30
    assert len(calls("jaxmodels")) == 2


@pytest.mark.slow
def test_two_processes_train_stop_and_go_on(tmp_path, monkeypatch):
    """No stand-ins: the real command, told to stop, and called again."""
    (tmp_path / "jaxmodels").write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxmodels "$@"\n')
    (tmp_path / "jaxmodels").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = tmp_path / "run"
    flags = ["--eval-every", "1000000", "--sample-every", "0", "--batch", "4", "--steps"]
    call = [*TWO[:-1], str(run), *flags]
    process = subprocess.Popen([*call, "1000000"])
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(100) == 75
    (reached,) = rundir.steps(run / "checkpoints")
    assert subprocess.run([*call, str(reached + 3)], timeout=200).returncode == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, reached + 4))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_and_starts_nothing_anew(calls, monkeypatch, number):
    monkeypatch.setenv("CODES", "75")
    monkeypatch.setenv("SECONDS_0", "50")
    monkeypatch.setenv("SECONDS_1", "50")
    process = subprocess.Popen(TWO)
    while len(calls("jaxmodels")) < 2:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == 143  # the stand-ins do not save
    assert len(calls("jaxmodels")) == 2
