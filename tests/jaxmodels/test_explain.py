"""An error of the operating system names the file."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, NO_SPACE
from jaxmodels.explain import explain

UNREADABLE = "/proc/self/mem"  # opens, and gives an error when it is read


@contextmanager
def files_of_at_most(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", UNREADABLE],
        ["generate", UNREADABLE],
        ["train", "charlm:tiny", "--out", "run", "--config", UNREADABLE],
        ["data", "inspect", f"text:{UNREADABLE}"],
        ["data", "inspect", f"jsonl:{UNREADABLE}#text"],
        ["bench", "host", "--compare", UNREADABLE],
    ],
    ids=" ".join,
)
def test_an_unreadable_file_is_named(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == CORRUPT
    assert f"where: {UNREADABLE}" in capsys.readouterr().err


def test_a_full_disk_in_the_words_of_a_library():
    problem = explain(RuntimeError("write() failed: File too large; writing /tmp/shapes"))
    assert (problem.what, problem.exit_code) == ("the disk is full", NO_SPACE)
    assert "/tmp/shapes" in problem.why


def test_a_full_disk_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # Python would leave half a file
    with files_of_at_most(5000):
        assert main(["data", "prepare", "pydoc", str(tmp_path / "data")]) == NO_SPACE
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert str(tmp_path) in said
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["train", "charlm:tiny", "--out", str(tmp_path / "file")]) == CORRUPT
    assert f"where: {tmp_path / 'file'}\n" in capsys.readouterr().err


def test_a_temporary_name_is_not_told(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    out = tmp_path / "none" / "report.html"
    assert main(["report", str(tmp_path / "run"), "-o", str(out)]) == CORRUPT
    assert f"where: {out}\n" in capsys.readouterr().err


def test_a_file_that_an_object_holds_is_found(tmp_path):
    class Log:
        def __init__(self):
            self.file = (tmp_path / "log").open("w")

        def flush(self):
            self.file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    try:
        Log().flush()
    except OSError as error:
        problem = explain(error)
    assert (problem.where, problem.exit_code) == (str(tmp_path / "log"), NO_SPACE)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8000000000000 bytes.\nmore"),
    ],
    ids=repr,
)
def test_memory_that_is_full_is_no_defect(error):
    problem = explain(error)
    assert (problem.what, problem.exit_code) == ("there is not enough memory", NO_SPACE)
    assert "--batch" in problem.fix
    assert "\n" not in problem.why
