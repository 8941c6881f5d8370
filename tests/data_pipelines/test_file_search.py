"""The files that a path names: none is left out silently."""

import errno
import json
import os
from pathlib import Path

import pytest

from data_pipelines.errors import DataProblem
from data_pipelines.file_search import find, split_name
from data_pipelines.sources import open_text
from jaxmodels.files import naming
from tests.data_pipelines.test_records import documents


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_capitals_and_linked_folders_are_read(tmp_path):
    write(tmp_path / "data" / "a.TXT")
    write(tmp_path / "data" / "below" / "b.Txt")
    write(tmp_path / "elsewhere" / "c.txt")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "d.txt").symlink_to(tmp_path / "elsewhere" / "c.txt")
    names = ["a.TXT", "below/b.Txt", "d.txt", "linked/c.txt"]
    assert list(find(str(tmp_path / "data"), ".txt")) == names


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_capitals_of_other_kinds(tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    if kind == "jsonl":
        write(tmp_path / "a.JSONL", '{"text": "x"}\n')
    else:
        parquet.write_table(pa.table({"text": ["x"]}), tmp_path / "a.PARQUET")
    assert documents(f"{kind}:{tmp_path}") == ["x"]


def test_links_in_circles_end_and_no_folder_is_read_twice(tmp_path):
    write(tmp_path / "b" / "x.txt")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(".")
    (tmp_path / "a").symlink_to("b")  # its name comes first, and the real folder is read
    (tmp_path / "c").symlink_to("b")
    assert list(find(str(tmp_path), ".txt")) == ["b/x.txt"]
    found = find(f"{tmp_path}/**/*.txt")
    assert list(found.values()) == [tmp_path / "b" / "x.txt"]
    assert list(find(f"{tmp_path}/**/").values()) == [tmp_path / "b" / "x.txt"]


@pytest.mark.parametrize("name", ["gone.txt", "gone"])
@pytest.mark.parametrize("suffix", ["", "/*"])
def test_a_link_to_nothing_is_named(tmp_path, name, suffix):
    write(tmp_path / "a.txt")
    (tmp_path / name).symlink_to(tmp_path / "missing")
    with pytest.raises(DataProblem, match="link is broken") as caught:
        open_text(f"text:{tmp_path}{suffix}")
    assert caught.value.where == str(tmp_path / name)
    assert "missing does not exist" in caught.value.why


def test_an_editors_lock_is_nobodys_text(tmp_path):
    write(tmp_path / "a.txt")
    (tmp_path / ".#a.txt").symlink_to("user@host.1")
    assert list(find(str(tmp_path), ".txt")) == ["a.txt"]


def test_a_pipe_is_named(tmp_path):
    write(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    for spec in (tmp_path, tmp_path / "b.txt", tmp_path / "*.txt"):
        with pytest.raises(DataProblem, match="not a regular file") as caught:
            find(str(spec), ".txt")
        assert caught.value.where == str(tmp_path / "b.txt")


def test_folders_that_a_pattern_matches_are_read(tmp_path):
    write(tmp_path / "books" / "1.txt")
    write(tmp_path / "books" / "deep" / "2.txt")
    write(tmp_path / "books" / "deep" / "3.md")
    found = [path.relative_to(tmp_path) for path in find(f"{tmp_path}/bo*", ".txt").values()]
    assert found == [Path("books/1.txt"), Path("books/deep/2.txt")]


@pytest.mark.parametrize(
    ("rest", "path", "name"),
    [
        ("a.jsonl", "a.jsonl", ""),
        ("a.jsonl#body", "a.jsonl", "body"),
        ("c#/a#1.jsonl", "c#/a#1.jsonl", ""),
        ("c#/a#1.jsonl#body", "c#/a#1.jsonl", "body"),
        ("c#/a#1.jsonl#c#", "c#/a#1.jsonl", "c#"),
        ("c#/*.jsonl#body", "c#/*.jsonl", "body"),
        ("c#/*.jsonl", "c#/*.jsonl", ""),
        ("c#", "c#", ""),
        ("missing#body", "missing", "body"),
    ],
)
def test_a_number_sign_in_a_path(tmp_path, monkeypatch, rest, path, name):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "c#" / "a#1.jsonl")
    monkeypatch.chdir(tmp_path)
    assert split_name(rest) == (path, name)


def test_a_number_sign_in_specs(tmp_path, monkeypatch):
    write(tmp_path / "#1" / "c#.jsonl", json.dumps({"body": "x"}) + "\n")
    write(tmp_path / "#1" / "#a.txt", "y")
    monkeypatch.chdir(tmp_path)
    assert documents("jsonl:#1/c#.jsonl#body") == ["x"]
    assert documents("text:#1/#a.txt") == ["y"]
    assert documents("text:#1") == ["y"]


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b"])
def test_what_is_no_path_is_said(path):
    with pytest.raises(DataProblem, match="not a path") as caught:
        open_text(f"text:{path}")
    assert caught.value.exit_code == 2


def test_an_error_of_the_disk_names_the_file(tmp_path):
    for number in (errno.EIO, errno.ENOSPC):
        message = os.strerror(number)
        with pytest.raises(OSError, match=message) as caught, naming(tmp_path / "a"):
            raise OSError(number, message)
        assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="denied") as caught, naming(tmp_path / "a"):
        raise OSError(errno.EACCES, "denied", "other")
    assert caught.value.filename == "other"
