import json
import shutil

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data_pipelines import parquet as parquet_reader
from data_pipelines import records
from data_pipelines.errors import DataProblem
from data_pipelines.sources import fingerprint, open_text

TEXTS = ["one", "", "two\nlines", "\ud83d\ude00 ünï", "five"]


def documents(spec):
    """The documents of a source, each whole."""
    found = []
    for part in open_text(spec).parts:
        for text, begins in part.read(1 << 20):
            if begins:
                found.append(text)
            else:
                found[-1] += text
    return found


def write_jsonl(path, texts, field="text", end="\n"):
    lines = [json.dumps({"id": i, field: text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + end)


def write_parquet(path, texts, column="text", kind=None, groups=2):
    kind = kind or pa.string()
    table = pa.table({"id": range(len(texts)), column: pa.array(texts, kind)})
    parquet.write_table(table, path, row_group_size=groups)


def test_a_line_is_a_document(tmp_path):
    texts = [text.encode("utf-16", "surrogatepass").decode("utf-16") for text in TEXTS]
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    assert documents(f"jsonl:{tmp_path / 'a.jsonl'}") == texts
    assert "".join(open_text(f"jsonl:{tmp_path / 'a.jsonl'}").chunks()) == "\n\n".join(
        text for text in texts if text
    )


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=12),
    size=st.integers(1, 60),
    end=st.sampled_from(["", "\n", "\n\n", "\r\n"]),
)
def test_parts_of_a_file_take_each_line_once(tmp_path_factory, texts, size, end):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write_jsonl(path, texts, end=end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_RANGE", size)
        assert documents(f"jsonl:{path}") == texts
        assert open_text(f"jsonl:{path}").bytes == path.stat().st_size


def test_files_folders_globs_and_fields(tmp_path):
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "a.jsonl", ["1"], "body")
    write_jsonl(tmp_path / "b" / "z.ndjson", ["2"], "body")
    write_jsonl(tmp_path / "b" / "other.json", ["3"], "body")
    assert documents(f"jsonl:{tmp_path}#body") == ["1", "2"]
    assert documents(f"jsonl:{tmp_path}/b/*.json#body") == ["3"]
    write_parquet(tmp_path / "c.parquet", ["4", None, "5"], "body")
    assert documents(f"parquet:{tmp_path}#body") == ["4", "", "5"]
    with pytest.raises(DataProblem, match="there is no text"):
        open_text(f"parquet:{tmp_path}/b")


@pytest.mark.parametrize(
    ("line", "says", "why"),
    [
        ("{", "not JSON", "Expecting property name"),
        ('{"text": "cut', "not JSON", "Unterminated string starting at, column 10"),
        ("[1]", "no text 'text'", "no object"),
        ('{"body": "x", "id": 1}', "no text 'text'", "its fields: body, id"),
        ('{"text": 5}', "no text 'text'", "its fields: text"),
    ],
)
@pytest.mark.parametrize("size", [8, 1 << 20])
def test_a_bad_line_is_named(tmp_path, monkeypatch, line, says, why, size):
    monkeypatch.setattr(records, "_RANGE", size)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n\n{"text": "good"}\n' + line + "\n")
    with pytest.raises(DataProblem, match=says) as caught:
        documents(f"jsonl:{path}")
    assert caught.value.where == f"{path}, line 4"
    assert why in caught.value.why
    assert caught.value.exit_code == 3


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataProblem, match="not JSON") as caught:
        documents(f"jsonl:{path}")
    assert caught.value.where == f"{path}, line 2"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_row_is_a_document(tmp_path, kind):
    texts = ["one", "", "two\nlines", "ünï", "five"]
    write_parquet(tmp_path / "a.parquet", texts, kind=kind)
    source = open_text(f"parquet:{tmp_path / 'a.parquet'}")
    assert documents(source.spec) == texts
    assert len(source.parts) == 3
    assert all(part.bytes > 0 for part in source.parts)


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "_ROWS", 3)
    write_parquet(tmp_path / "a.parquet", [str(i) for i in range(20)], groups=10)
    assert documents(f"parquet:{tmp_path / 'a.parquet'}") == [str(i) for i in range(20)]


def test_what_is_no_parquet_or_has_no_such_text(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["x"])
    with pytest.raises(DataProblem, match="no column of text 'body'") as caught:
        open_text(f"parquet:{path}#body")
    assert "id (int64), text (string)" in caught.value.why
    with pytest.raises(DataProblem, match="no column of text 'id'"):
        open_text(f"parquet:{path}#id")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataProblem, match="not a readable Parquet") as caught:
        open_text(f"parquet:{path}")
    assert (caught.value.where, caught.value.exit_code) == (str(path), 3)


def test_damaged_rows_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["some text that is long enough " * 20] * 50, groups=50)
    data = bytearray(path.read_bytes())
    middle = len(data) // 4
    data[4:middle] = bytes(middle - 4)
    path.write_bytes(data)
    with pytest.raises(DataProblem, match="row group 0 cannot be read"):
        documents(f"parquet:{path}")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_fingerprint_is_that_of_the_contents(tmp_path, kind):
    write = {"jsonl": write_jsonl, "parquet": write_parquet}[kind]
    path = tmp_path / f"a.{kind}"
    write(path, ["one", "two"])
    first = fingerprint(open_text(f"{kind}:{path}"))
    assert first["files"] == {path.name: path.stat().st_size}
    shutil.copy(path, tmp_path / "moved")
    assert fingerprint(open_text(f"{kind}:{tmp_path / 'moved'}"))["sha256"] == first["sha256"]
    write(path, ["one", "twO"])
    assert fingerprint(open_text(f"{kind}:{path}"))["sha256"] != first["sha256"]


def test_the_field_is_part_of_the_fingerprint(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": "y"}\n')
    a, b = (fingerprint(open_text(f"jsonl:{tmp_path}#{field}")) for field in "ab")
    assert a["sha256"] != b["sha256"]
