"""Two real processes on this machine train one model on a mixture; one is lost, stopped, or never
comes."""

import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, NETWORK, STOPPED, USAGE, Problem
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.multihost import processes
from jaxmodels.runtime.multihost.cluster import Place, find
from jaxmodels.runtime.multihost.rendezvous import meet
from jaxmodels.runtime.runs.rundir import steps
from tests.children import simulated
from tests.jaxmodels.helpers import command, losses

RUN = ["charlm:tiny", "--model.layers", "1", "--steps", "40", "--save-every", "4", "--keep", "20"]
RUN += ["--eval-every", "8", "--eval-batches", "1", "--sample-every", "0", "--batch", "8"]
# Each process takes its rows of both sources, and must leave the others to the other.
SOURCES = ("pydoc", f"text:{Path(__file__).parents[2] / 'README.md'}")
RUN += ["--data", f"mix:3*{SOURCES[0]},1*{SOURCES[1]}"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Programs here add in LLVM's way, which agrees closely in float32."""
    own = simulated(devices, OMP_NUM_THREADS="1")
    return own | {"XLA_FLAGS": f"{own['XLA_FLAGS']} --xla_backend_optimization_level=1"}


def two(*outs: Path, flags: tuple[str, ...] = ()) -> list:
    """Two processes of a run, each of one device, with their own --out each or the same."""
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--heartbeat", "10"]
    return [
        command(
            *(
                "train",
                *RUN,
                *where,
                "--process",
                str(index),
                "--out",
                str(outs[index % len(outs)]),
            ),
            *flags,
            env=environment(1),
        )
        for index in (0, 1)
    ]


def ended(both: list) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda one: one.communicate(timeout=120)[1], both))
    return [(one.returncode, text) for one, text in zip(both, said, strict=True)]


def wait_for(there, both: list) -> None:
    while not there():
        assert all(one.poll() is None for one in both), ended(both)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of one process, with every checkpoint."""
    run = tmp_path_factory.mktemp("whole") / "run"
    alone = command("train", *RUN, "--out", str(run), env=environment(1))
    assert alone.communicate(timeout=120)[1]
    assert alone.returncode == DONE
    return run


def close_to(run: Path, whole: Path, last: int) -> None:
    found, expected = losses(run), losses(whole)
    assert [step for step, _ in found] == list(range(1, last + 1))
    assert np.abs(np.subtract(found, expected[:last])).max() < 1e-6


@pytest.mark.slow
def test_one_of_two_is_killed_and_one_process_goes_on(whole, tmp_path):
    """On another mesh, to the losses of the run that nothing broke."""
    run = tmp_path / "run"
    both = two(run)
    wait_for(lambda: (run / "checkpoints" / "4").is_dir(), both)
    both[1].kill()
    (code, said), _ = ended(both)
    assert code == STOPPED, said
    assert "process 1 was lost" in said
    kept = steps(run / "checkpoints")
    assert not any(damage(run / "checkpoints" / str(step)) for step in kept)
    assert any((run / "checkpoints" / "4" / "params").rglob("*process_1*"))  # both wrote
    on = command("train", "--out", str(run), "--mesh", "model=2", env=environment(2))
    said = on.communicate(timeout=120)[1]
    assert on.returncode == DONE, said
    assert f"resumed from checkpoint {kept[-1]}" in said
    close_to(run, whole, 40)


@pytest.mark.slow
def test_two_go_on_from_one_and_stop_together(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in steps(run / "checkpoints")[1:]:
        shutil.rmtree(run / "checkpoints" / str(step))
    both = two(run, flags=("--save-minutes", "0.0001"))
    wait_for(lambda: (run / "checkpoints" / "8").is_dir(), both)
    both[1].send_signal(signal.SIGTERM)
    (first, said), (second, silence) = ended(both)
    assert (first, second) == (STOPPED, STOPPED), said + silence
    step = int(re.search(r"SIGTERM: step (\d+) of 40", said)[1])
    assert 8 < step < 40
    saved = steps(run / "checkpoints")
    assert saved[-1] == step
    assert any(other % 4 for other in saved[:-1])  # by the clock, at the same step in both
    assert not damage(run / "checkpoints" / str(step))
    assert "validation loss" not in silence
    close_to(run, whole, step)
    ours, theirs = ({r["step"]: r for r in read(one / "metrics.jsonl")} for one in (run, whole))
    for name in ("valid_loss", *(f"valid_loss/{source}" for source in SOURCES)):
        assert ours[8][name] == pytest.approx(theirs[8][name], abs=1e-6)


@pytest.mark.slow
def test_processes_that_share_no_folder_are_refused(tmp_path):
    both = ended(two(tmp_path / "one", tmp_path / "two"))
    assert [code for code, _ in both] == [USAGE, USAGE], both
    assert "do not share the run directory" in both[0][1]
    assert "process 1 does not see a file that process 0 wrote there" in both[0][1]
    assert not (tmp_path / "one").exists()


def test_a_wrong_address_is_told(tmp_path, capsys):
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--join-timeout", "1"]
    words = ["train", *RUN, "--out", str(tmp_path / "run"), *where]
    assert main([*words, "--process", "1"]) == NETWORK
    assert "process 0 was not found within 1 s" in capsys.readouterr().err
    assert main([*words, "--process", "0"]) == NETWORK
    assert "only 1 of 2 processes came within 1 s" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--coordinator", "localhost:1"], "need --processes"),
        (["--processes", "2"], "needs --coordinator"),
        (["--processes", "2", "--process", "2", "--coordinator", "a:1"], "there is no process 2"),
        (["--processes", "2", "--process", "0", "--coordinator", "a"], "must be HOST:PORT"),
    ],
)
def test_flags_that_say_too_little_are_refused(tmp_path, capsys, words, said):
    assert main(["train", *RUN, "--out", str(tmp_path / "run"), *words]) == USAGE
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_begins_from_a_checkpoint_in_one_process_only(whole, tmp_path, capsys):
    words = ["train", "--init", str(whole), "--out", str(tmp_path / "run"), "--processes", "2"]
    assert main([*words, "--process", "1", "--coordinator", "127.0.0.1:1"]) == USAGE
    assert "--init begins a run in one process only" in capsys.readouterr().err


def met(*callers: tuple[int, int, dict]) -> list[str]:
    """How `meet` ended for each (count, index, facts): "" or what it raised."""
    port = free_port()

    def one(caller: tuple[int, int, dict]) -> str:
        try:
            meet(("127.0.0.1", port), *caller, wait=3, check=lambda: None)
        except Problem as problem:
            return f"{problem.what}: {problem.why}"
        return ""

    with ThreadPoolExecutor(len(callers)) as pool:
        return list(pool.map(one, callers))


def test_processes_meet_or_are_told_why_not():
    assert met((3, 0, {}), (3, 2, {}), (3, 1, {})) == ["", "", ""]
    told = met((2, 0, {}), (3, 1, {}))
    assert all("process 0 expects 2 processes, process 1 expects 3" in why for why in told)
    told = met((3, 0, {}), (3, 1, {}), (3, 1, {}))
    assert all("two processes say that they are number 1" in why for why in told)
    assert all("batch: 8 and 16" in why for why in met((2, 0, {"batch": 8}), (2, 1, {"batch": 16})))
    assert "not heard of: process 2" in met((3, 0, {}), (3, 1, {}))[1]


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Problem, match="cannot listen"):
            meet(("127.0.0.1", port), 2, 0, {}, wait=1, check=lambda: None)


def test_a_stop_ends_the_wait():
    def check():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        meet(("127.0.0.1", free_port()), 2, 0, {}, wait=60, check=check)
    assert threading.active_count() < 50


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_slurm_is_asked(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert find("", 0, None) == Place(f"node001:{61440 + 7}", 4, 3, [1])
    assert find("", 1, None) is None  # asks nobody
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x4)")
    assert find("", 0, None).devices is None  # all of the node's
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find("", 0, None) is None


def test_one_machine_is_no_cluster():
    assert find("", 0, None) is None
    assert processes.all_gather("mine") == ["mine"]
    assert processes.is_primary()
    assert not processes.several()
