"""Which checkpoints are kept: sound ones, by step, whatever else is in the folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.runtime.finite import NotFinite
from jaxmodels.runtime.runs import checkpoint as ckpt
from jaxmodels.runtime.runs import rundir, sound
from jaxmodels.runtime.step import State


def state(step: int, **odd: dict) -> State:
    parts = {
        "params": {"a/b": np.ones(3)},
        "model_state": {"c/d": np.ones(2)},
        "opt": {"m": np.ones(3)},
    }
    return State(**(parts | odd), step=np.int32(step), key=np.zeros(2, np.uint32))


def save(folder: Path, *steps: int, keep: int = 9, metrics: dict | None = None) -> None:
    """One call of `train` that saves these."""
    checkpoints = ckpt.Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(state(step), {"next": step}, metrics or {})
    checkpoints.wait()


def flip(checkpoint: Path) -> bytes:
    path = checkpoint / "data.json"
    path.write_bytes(path.read_bytes().replace(b"n", b"m"))
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_damaged_checkpoint_does_not_count_and_is_not_deleted(tmp_path, capsys):
    save(tmp_path, 40, 50, 60)
    evidence = flip(tmp_path / "60")
    save(tmp_path, 55, keep=1)
    assert names(tmp_path) == ["55", "60.damaged"]
    assert (tmp_path / "60.damaged" / "data.json").read_bytes() == evidence
    said = capsys.readouterr().err
    assert "checkpoint 60 is damaged: data.json is damaged" in said
    assert f"kept as {tmp_path / '60.damaged'}" in said


def test_a_damaged_best_is_not_the_best(tmp_path):
    save(tmp_path, 10, metrics={"valid_loss": 1.0})
    save(tmp_path, 20, metrics={"valid_loss": 2.0})
    flip(tmp_path / "10")
    save(tmp_path, 30, 40, keep=1, metrics={"valid_loss": 3.0})
    assert names(tmp_path) == ["10.damaged", "20", "40"]


def test_what_was_just_written_is_never_pruned(tmp_path):
    save(tmp_path, 50, 60)
    save(tmp_path, 20, keep=1)
    assert rundir.steps(tmp_path) == [20, 60]


def test_what_this_call_wrote_is_not_hashed_again(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    hashed = []
    real = sound.unsound
    monkeypatch.setattr(ckpt, "unsound", lambda path: hashed.append(path.name) or real(path))
    save(tmp_path, 3, 4, 5, keep=2)
    assert hashed == ["2"]  # kept beside 3; 1 was not to be kept
    assert rundir.steps(tmp_path) == [4, 5]


def test_strays_count_for_nothing_and_stay(tmp_path):
    (tmp_path / "40").write_text("a note")
    for name in ("50", "007", "notes", ".ipynb_checkpoints", "\u0661"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("mine")
    (tmp_path / ".60.0123abcd.tmp" / "params").mkdir(parents=True)  # what a kill left
    assert rundir.steps(tmp_path) == []
    save(tmp_path, 30, 40, keep=1)
    assert rundir.steps(tmp_path) == [40]
    assert (tmp_path / "40.damaged").read_text() == "a note"
    for name in ("50", "007", "notes", ".ipynb_checkpoints", "\u0661"):
        assert (tmp_path / name / "x").read_text() == "mine"
    assert not (tmp_path / ".60.0123abcd.tmp").exists()
    assert rundir.strays(tmp_path) == ["007", "40.damaged", "50", "notes", "\u0661"]


def test_a_name_and_the_step_inside_must_agree(tmp_path):
    save(tmp_path, 10, 20, 30)
    shutil.copytree(tmp_path / "20", tmp_path / "60")
    (tmp_path / "10").rename(tmp_path / "x")
    (tmp_path / "30").rename(tmp_path / "10")
    (tmp_path / "x").rename(tmp_path / "30")
    passed: dict[int, str] = {}
    found = sound.newest_sound(tmp_path, passed)
    assert found is not None
    assert found.folder.name == "20"
    assert passed == {
        60: "it is the checkpoint of step 20, renamed or copied",
        30: "it is the checkpoint of step 10, renamed or copied",
    }
    assert sound.unsound(tmp_path / "10") == ["it is the checkpoint of step 30, renamed or copied"]


def test_all_damaged_is_an_error_again_and_again(tmp_path):
    save(tmp_path, 10, 20)
    (tmp_path / "20").rename(tmp_path / "30")
    flip(tmp_path / "10")
    for _ in range(2):
        with pytest.raises(Problem, match="every checkpoint is damaged"):
            sound.newest_sound(tmp_path, {})
    assert names(tmp_path) == ["10", "30"]


def test_a_checkpoint_that_is_read_is_pruned_later(tmp_path):
    save(tmp_path, 1)
    held = sound.hold(tmp_path / "1")
    assert held is not None
    save(tmp_path, 2, keep=1)
    assert rundir.steps(tmp_path) == [1, 2]
    assert sound.unsound(tmp_path / "1") == []
    held.close()
    save(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["3"]


def test_a_reader_takes_the_next_when_one_is_pruned_before_it(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    real = sound.unsound

    def unsound(checkpoint: Path) -> list[str]:
        if checkpoint.name == "2":
            shutil.rmtree(checkpoint)
            save(tmp_path, 3)
        return real(checkpoint)

    monkeypatch.setattr(sound, "unsound", unsound)
    passed: dict[int, str] = {}
    found = sound.best_sound(tmp_path, passed)
    assert found is not None
    assert (found.folder.name, passed) == ("3", {})


@pytest.mark.parametrize("part", ["params", "model_state", "opt", "ema"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, part, value):
    checkpoints = ckpt.Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), {}, {})
    with pytest.raises(NotFinite, match=f"after step 2 {part}.x is not finite") as caught:
        checkpoints.save(state(2, **{part: {"x": np.array([1.0, value])}}), {}, {})
    checkpoints.wait()
    assert (caught.value.exit_code, rundir.steps(tmp_path)) == (UNVERIFIED, [1])
    assert sound.checked_finite(tmp_path / "1")


def test_what_cannot_be_removed_ends_no_training(tmp_path, monkeypatch, capsys):
    save(tmp_path, 1, 2)
    real = Path.rename

    def rename(self, target):
        if self.name == "1":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["1", "3"]
    assert "checkpoint 1 could not be removed: [Errno 13]" in capsys.readouterr().err


def test_what_a_kill_between_two_renames_left_is_not_lost(tmp_path):
    """Where a file system cannot swap two names."""
    save(tmp_path, 10)
    (tmp_path / "10").rename(tmp_path / ".10.0123abcd.old")
    ckpt.Checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == ["10"]
    assert sound.unsound(tmp_path / "10") == []


def test_a_checkpoint_that_was_moved_and_linked_is_pruned_as_a_link(tmp_path):
    folder, moved = tmp_path / "checkpoints", tmp_path / "moved"
    save(folder, 10)
    (folder / "10").rename(moved)
    (folder / "10").symlink_to(moved)
    save(folder, 20, keep=1)
    assert names(folder) == ["20"]
    assert (moved / "manifest.json").exists()
