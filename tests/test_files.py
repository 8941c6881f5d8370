"""Files and folders that appear completely or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmodels import files
from jaxmodels.commands.lock import locked
from jaxmodels.errors import Problem

ROOT = Path(__file__).parents[1]


def fill(path, content, force=False):
    with files.atomic_folder(path, force) as new:
        (new / "content").write_text(content)


# Kills itself at the n-th rename while it replaces a folder.
REPLACE = """
import importlib, os, pathlib, signal, sys
files, out = importlib.import_module(sys.argv[1]), pathlib.Path(sys.argv[2])
left = int(sys.argv[3])
if sys.argv[4] == "plain":
    files._exchange = lambda new, path: False

def count(event, _):
    global left
    left -= event == "os.rename"
    if event == "os.rename" and not left:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
with files.atomic_folder(out, force=True) as new:
    (new / "content").write_text("new")
if left > 0:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["exchange", "plain"])
@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_kill_at_any_rename_loses_nothing(tmp_path, way, rename):
    out = tmp_path / "out"
    fill(out, "old")
    command = [sys.executable, "-c", REPLACE, files.__name__, str(out), str(rename), way]
    killed = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True)
    assert killed.returncode == -9, killed.stderr
    if way == "plain":  # a moment without the name, which the next writer ends
        with pytest.raises(Problem, match="exists already"):
            fill(out, "other")
    assert (out / "content").read_text() in ("old", "new")
    fill(out, "newer", force=True)
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_stays(tmp_path):
    def late():
        with files.atomic_folder(tmp_path / "out") as new:
            (new / "mine").write_text("later")
            fill(tmp_path / "out", "first")

    with pytest.raises(Problem, match="exists already") as caught:
        late()
    assert caught.value.exit_code == 6
    assert (tmp_path / "out" / "content").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("there", ["file", "link", "empty"])
def test_force_replaces_whatever_has_the_name(tmp_path, there):
    out = tmp_path / "out"
    if there == "file":
        out.write_text("old")
    elif there == "link":
        out.symlink_to("nowhere")
    else:
        out.mkdir()
    with pytest.raises(Problem, match="exists already"):
        fill(out, "new")
    fill(out, "new", force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["content"]


def test_only_what_the_dead_left_is_cleared(tmp_path):
    (tmp_path / ".out.0123abcd.tmp").mkdir()
    (tmp_path / ".out.0123abcd.tmp" / "half").write_text("…")
    others = [".out.json.0123abcd.tmp", ".out.old", ".out.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    with files.atomic_folder(tmp_path / "out", force=True) as slow:
        (slow / "content").write_text("slow")
        fill(tmp_path / "out", "quick")
        assert (slow / "content").read_text() == "slow"
    assert (tmp_path / "out" / "content").read_text() == "slow"
    (tmp_path / ".note.0123abcd.tmp").write_text("half")
    files.write_text(tmp_path / "note", "whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "note", "out"])


@pytest.fixture
def synced(monkeypatch):
    """The inodes of what was synced to the disk."""
    inodes, fsync = set(), os.fsync

    def record(descriptor):
        inodes.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", record)
    return inodes


def test_every_folder_is_synced(tmp_path, synced):
    out = tmp_path / "a" / "b" / "out"
    with files.atomic_folder(out) as new:
        (new / "c" / "d").mkdir(parents=True)
        (new / "c" / "d" / "file").write_text("text")
    for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", out, *out.rglob("*")):
        assert path.stat().st_ino in synced, path


def test_a_new_run_directory_is_synced(tmp_path, synced):
    with locked(tmp_path / "a" / "run"):
        assert {path.stat().st_ino for path in (tmp_path, tmp_path / "a")} <= synced


def test_a_full_disk_is_told_by_the_path_that_was_asked_for(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space") as caught:
        fill(tmp_path / "out", "new")
    assert caught.value.filename == str(tmp_path / "out")
    with pytest.raises(OSError, match="No space") as caught:
        files.write_text(tmp_path / "note", "new")
    assert caught.value.filename == str(tmp_path / "note")
    assert os.listdir(tmp_path) == []
