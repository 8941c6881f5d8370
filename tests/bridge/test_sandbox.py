"""The process that reads legacy files: what it may do, how it ends, and whether it is believed."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.core.tensors import digest_of
from bridge.formats import recognise
from bridge.legacy import budget
from bridge.sandbox import client
from jaxmodels.errors import CORRUPT, UNSAFE, Problem
from tests.bridge import fuzz_corpus
from tests.bridge.fuzz_mutate import mutate
from tests.bridge.helpers import GOLDEN, command, in_this_process

SEEDS = GOLDEN.parent
CKPT = SEEDS / "nanogpt_bias" / "ckpt.pt"
LEGACY = [CKPT, SEEDS / "wigip" / "step_7.zip", SEEDS / "bwetaf_rope"]


def child_of(contents):
    """The process that reads the tensors of a file."""
    tensor = next(iter(contents.tensors.values()))
    return tensor.read.func.__self__


def problem_of(call, *arguments):
    """The parts of the problem that a call raises."""
    with pytest.raises(Problem) as caught:
        call(*arguments)
    return vars(caught.value)


def saved(path, pickled):
    """A torch file that holds nothing else."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x04" + pickled + b".")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("path", LEGACY, ids=lambda path: path.name)
def test_limits_are_set_and_nothing_of_ours_is_seen(path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    contents = recognise(path)
    pid = child_of(contents).process.pid
    about = Path("/proc") / str(pid)
    lines = (about / "limits").read_text().splitlines()[1:]
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    for name in ("Max file size", "Max core file size", "Max processes"):
        assert limits[name] == ["0", "0"]
    assert limits["Max open files"] == ["16", "16"]
    assert int(limits["Max address space"][0]) < 2 * budget.MEMORY
    assert int(limits["Max cpu time"][0]) <= budget.SECONDS + 5
    names = [entry.split(b"=")[0] for entry in (about / "environ").read_bytes().split(b"\0")]
    assert {*names} <= {b"OPENBLAS_NUM_THREADS", b"LD_LIBRARY_PATH", b""}
    mapped = (about / "maps").read_text()
    assert "numpy" in mapped
    assert not [name for name in ("jaxlib", "libtorch", "libtpu", "tokenizers") if name in mapped]
    assert len(list((about / "fd").iterdir())) <= 5  # pipes: three, and two once more
    assert os.getsid(pid) == pid
    del contents
    gc.collect()
    assert not about.exists()


def test_too_much_memory(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(budget, "MEMORY", 30_000_000)
    long = saved(tmp_path / "long.pt", b"}" * 1_900_000)  # dicts of 130 MB
    problem = problem_of(recognise, long)
    assert (problem["what"], problem["exit_code"]) == (
        "reading the file takes more memory than it should",
        UNSAFE,
    )
    for verb in (["inspect", long], ["convert", long, tmp_path / "out"]):
        code, out, err = command(capsys, *verb)
        assert code == UNSAFE
        assert "more memory than it should" in str(out) + err
        assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["long.pt"]


@pytest.mark.slow
def test_too_much_time(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(budget, "SECONDS", 0)
    # A key of 300,000 numbers, looked at 5,000 times, takes minutes.
    pickled = b"}(" + b"K\x01" * 300_000 + b"tq\x000" + b"h\x00Ns" * 5_000
    long = saved(tmp_path / "long.pt", pickled)
    code, _, err = command(capsys, "convert", long, tmp_path / "out")
    assert code == UNSAFE
    assert "longer than it should" in err
    assert "Traceback" not in err


def test_a_tensor_for_which_memory_is_lacking(monkeypatch, tmp_path):
    import torch

    torch.save({"large": torch.zeros(10_000_000), "small": torch.ones(3)}, tmp_path / "x.pt")
    tensors = recognise(tmp_path / "x.pt").tensors
    with monkeypatch.context() as patch:
        patch.setattr(budget, "MEMORY", -100_000_000)  # of 120 that such a tensor may take
        assert "more memory" in problem_of(tensors["large"].read)["what"]
    assert tensors["small"].read().tolist() == [1, 1, 1]
    assert tensors["large"].read().shape == (10_000_000,)


def test_killed_midway(monkeypatch, tmp_path, capsys):
    read, seen = client.Child.tensor, []

    def kill(self, *arguments):
        seen.append(self)
        if len(seen) == 12:
            os.kill(self.process.pid, signal.SIGKILL)
        return read(self, *arguments)

    monkeypatch.setattr(client.Child, "tensor", kill)
    code, _, err = command(capsys, "convert", CKPT, tmp_path / "out")
    assert code == CORRUPT
    assert "ended before it was done" in err
    assert "signal SIGKILL" in err
    assert "Traceback" not in err
    assert len(seen) == 12
    assert not list(tmp_path.iterdir())
    again = problem_of(read, seen[0], 0, (1,), np.dtype("f4"))
    assert "ended before" in again["what"]


def test_what_ends_it_at_its_start_is_said(monkeypatch):
    monkeypatch.setattr(client, "FOLDERS", [])
    problem = problem_of(client.read, "torch", CKPT)
    assert "No module named" in problem["why"]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot be started" in problem_of(client.read, "torch", CKPT)["what"]


def test_an_interruption_ends_it(monkeypatch):
    contents = recognise(CKPT)
    child, tensor = child_of(contents), next(iter(contents.tensors.values()))
    with monkeypatch.context() as patch:

        def interrupt(self, request, into):
            raise KeyboardInterrupt

        patch.setattr(client.Child, "exchange", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tensor.read()
    assert child.process.returncode is not None
    assert "ended before" in problem_of(tensor.read)["what"]


def test_it_ends_with_its_parent():
    code = f"""
import os, signal, sys
from pathlib import Path
from bridge.formats import recognise
contents = recognise(Path({str(CKPT)!r}))
print(next(iter(contents.tensors.values())).read.func.__self__.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    process = Path("/proc") / done.stdout.strip() / "cmdline"
    for _ in range(100):
        if not process.exists() or not process.read_bytes():  # gone, or nobody's
            return
        time.sleep(0.1)
    raise AssertionError("it goes on without its parent")


def test_it_can_neither_write_nor_call(tmp_path):
    code = """
import os, socket, subprocess
from bridge.sandbox import worker
worker.confine()
for harm in (
    lambda: open("made", "w"),
    lambda: os.open("made", os.O_CREAT | os.O_RDWR),
    lambda: os.system("touch made"),
    lambda: subprocess.run(["touch", "made"]),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: os.fork(),
    lambda: os.remove("kept"),
):
    try:
        harm()
    except PermissionError:
        continue
    raise AssertionError(harm)
"""
    (tmp_path / "kept").write_bytes(b"")
    root = str(Path(bridge.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def outcome(path):
    """What is made of a file: digests, or what the problem says."""
    try:
        contents = recognise(path)
        found = {name: digest_of(tensor.read()) for name, tensor in contents.tensors.items()}
        return contents.format, contents.fields, contents.origin, contents.notes, found
    except Problem as problem:
        return vars(problem)


@pytest.mark.slow
def test_it_makes_of_a_file_what_the_readers_make_here(tmp_path):
    fuzz_corpus.hostile(tmp_path / "hostile")
    paths = sorted((tmp_path / "hostile").iterdir())[::6]
    rng = random.Random(0)
    for number in range(15):
        source = LEGACY[number % 3]
        path = tmp_path / f"{number}{source.suffix}"
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)
        paths.append(path)
        if number >= len(LEGACY):
            mutate(path, rng)
    seen = []
    for path in paths:
        there = outcome(path)
        with in_this_process():
            here = outcome(path)
        assert there == here, path.name
        seen.append(isinstance(there, dict))
    assert any(seen)
    assert not all(seen)


class Liar(client.Child):
    """A process that answers what a test likes."""

    answers: tuple = ()

    def exchange(self, request, into):
        return Liar.answers


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"value": {"top": [3], "table": []}}, UNSAFE),
        ({"bytes": 3}, UNSAFE),
        ({"problem": None}, CORRUPT),
        ({"problem": {"what": ["x"], "exit_code": 0}}, CORRUPT),
        ({"problem": {"what": "x" * 100_000, "exit_code": UNSAFE}}, UNSAFE),
    ],
)
def test_answers_are_checked(monkeypatch, answer, code):
    monkeypatch.setattr(client, "Child", Liar)
    monkeypatch.setattr(Liar, "answers", answer)
    problem = problem_of(client.read, "torch", CKPT)
    assert problem["exit_code"] == code
    assert len(problem["what"]) <= client.MAX_TEXT


@pytest.mark.slow
def test_a_tensor_of_another_size_is_not_taken(monkeypatch):
    child = child_of(recognise(CKPT))
    assert "a tensor of another size" in problem_of(child.tensor, 0, (7,), np.dtype("f4"))["why"]
    assert child.process.returncode is not None
