import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import DataProblem
from data_pipelines.reading import Reading
from data_pipelines.sources import fingerprint, open_text


def text_of(spec, size=1 << 20):
    return "".join(open_text(spec).chunks(size))


def test_pydoc_is_prose_and_always_the_same():
    text = text_of("pydoc")
    assert len(text) > 300_000
    assert text == text_of("pydoc", size=1000)
    assert text.startswith('The "assert" statement')


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")), size=st.integers(1, 5))
def test_characters_that_span_chunks(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("source") / "a.txt"
    path.write_bytes(text.encode())
    assert text_of(f"text:{path}", size) == text.removeprefix("\ufeff")


def test_newlines_stay_and_the_byte_order_mark_goes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\xef\xbb\xbf")
    for size in (1, 2, 1 << 20):
        assert text_of(f"text:{tmp_path / 'a.txt'}", size) == "a\r\nb\rc\n\ufeff"


def test_a_folder_is_its_text_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in {
        "b/z.txt": "3",
        "b.txt": "2",
        "a.txt": "1",
        "empty.txt": "",
        "x.md": "x",
    }.items():
        (tmp_path / name).write_text(text)
    source = open_text(f"text:{tmp_path}")
    assert list(source.files) == [
        "a.txt",
        "b.txt",
        "b/z.txt",
        "empty.txt",
    ]
    assert "".join(source.chunks()) == "1\n\n2\n\n3"


def test_a_glob_takes_what_it_matches(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/z.md", "a.md", "c.txt"):
        (tmp_path / name).write_text(name)
    assert text_of(f"text:{tmp_path}/*.md") == "a.md"
    assert text_of(f"text:{tmp_path}/**/*.md") == "a.md\n\nb/z.md"


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("yes")
    assert text_of(f"text:{tmp_path}/a[1].txt") == "yes"


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "byte", "says"),
    [
        (b"good\xff bad", 4, "0xff: invalid start byte"),
        ("café".encode()[:-1], 3, "0xc3: unexpected end of data"),
        ("é".encode() + b"\xc3(", 2, "0xc3: invalid continuation byte"),
        (b"\xef\xbb\xbfabc\x80", 6, "0x80: invalid start byte"),
        (b"abc\0def", 3, "binary file"),
        ("ab".encode("utf-16-le"), 1, "UTF-16"),
    ],
)
def test_what_is_not_text_is_named_by_file_and_byte(tmp_path, data, byte, says, size):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    (tmp_path / "also.txt").write_text("a good one that comes first")
    with pytest.raises(DataProblem, match="not UTF-8 text") as caught:
        text_of(f"text:{tmp_path}", size)
    assert caught.value.where == f"{path}, byte {byte}"
    assert says in caught.value.why
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("path", ["missing.txt", "*.nothing", "folder"])
def test_nothing_there(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataProblem, match="there is no text") as caught:
        open_text(f"text:{tmp_path / path}")
    assert caught.value.exit_code == 3
    assert str(tmp_path / path) == caught.value.where


def test_a_pipe_cannot_be_read_twice():
    with pytest.raises(DataProblem, match="not a regular file"):
        open_text("text:/dev/null")


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("pydocs", "pydoc"),
        ("txt:a", "text:PATH"),
        ("text", "text:PATH"),
        ("text:", "text:PATH"),
        ("pydoc:x", "pydoc"),
        ("", "data list"),
        ("qqq", "data list"),
    ],
)
def test_unknown_specs_get_near_names(spec, near):
    with pytest.raises(DataProblem, match="unknown data") as caught:
        open_text(spec)
    assert caught.value.exit_code == 2
    assert near in caught.value.fix


def test_a_bare_path_is_told_its_prefix(tmp_path):
    with pytest.raises(DataProblem, match=f"did you mean text:{tmp_path}"):
        open_text(str(tmp_path))


def test_the_fingerprint_is_the_sha256_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("twö")
    calls = []
    found = fingerprint(open_text(f"text:{tmp_path}"), lambda *call: calls.append(call))
    assert found == {
        "sha256": hashlib.sha256("one\n\ntwö".encode()).hexdigest(),
        "files": {"a.txt": 3, "b.txt": 4},
    }
    assert calls[-1][1:] == (7, 7)


def test_a_reading_passes_the_text_on():
    source = open_text("pydoc")
    reading = Reading(source)
    assert sum(map(len, reading)) == reading.characters
    assert reading.sha256() == fingerprint(source)["sha256"]
