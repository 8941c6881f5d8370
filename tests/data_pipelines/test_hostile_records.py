"""Other people's JSON lines and Parquet: read as text, or refused with a clear message."""

import json
import os
import tracemalloc
from contextlib import suppress

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from data_pipelines import limits
from data_pipelines import parquet as reader
from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.parquet_pages import _struct, chunks_of, largest_page
from data_pipelines.prepare import prepare
from data_pipelines.sources import open_text
from tests.data_pipelines.test_records import documents


def refused(spec):
    with pytest.raises(DataProblem) as caught:
        documents(spec)
    return caught.value


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r'"a\ud800b"', "a\ufffdb"),
        (r'"\udc00"', "\ufffd"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        ("null", ""),
    ],
)
def test_half_a_pair_is_replaced_and_a_null_is_empty(tmp_path, written, text):
    (tmp_path / "a.jsonl").write_text(f'{{"text": {written}}}\n')
    assert documents(f"jsonl:{tmp_path}") == [text]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "x", "n": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"text": "x", "n": ' + "[" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' * 50_000, "nested too deeply"),
        (json.dumps({f"{i}\ud800": 0 for i in range(10_000)}), "and 9980 more"),
        ('{"text": ["x"]}', "its fields: text"),
    ],
)
def test_a_line_that_python_cannot_read_is_named(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    problem = refused(f"jsonl:{path}")
    assert (problem.where, problem.exit_code) == (f"{path}, line 2", 3)
    assert why in problem.why
    assert len(str(problem).encode()) < 2000


@pytest.mark.parametrize("kind", ["jsonl", "text"])
@pytest.mark.parametrize("tokenizer", [None, CharTokenizer(("a",))])
def test_a_terabyte_of_nothing_is_refused_at_once(tmp_path, kind, tokenizer):
    path = tmp_path / f"a.{kind}"
    path.write_text('{"text": "good"}\n' * 10_000)
    os.truncate(path, 1 << 40)
    with pytest.raises(DataProblem, match="file is incomplete") as caught:
        prepare(f"{kind}:{path}", tmp_path / "data", tokenizer=tokenizer)
    assert caught.value.where.startswith(f"{path}, byte ")


def test_a_line_without_an_end_is_refused_at_its_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr("data_pipelines.records.refuse_holes", lambda paths: None)
    monkeypatch.setenv(limits.DOCUMENT_VARIABLE, "3")
    problem = refused(f"jsonl:{path}")
    assert problem.where == f"{path}, line 1"
    assert "3 MiB" in problem.why
    assert f"{limits.DOCUMENT_VARIABLE}=12" in problem.fix


def test_far_into_a_file_the_byte_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.records._COUNTED", 10)
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{\n')
    assert refused(f"jsonl:{tmp_path}").where == f"{tmp_path}/a.jsonl, byte 17"


def test_the_limit_of_a_line_is_the_users(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * (1 << 20)}) + "\n")
    monkeypatch.setenv(limits.DOCUMENT_VARIABLE, "1")
    assert "1 MiB" in refused(f"jsonl:{tmp_path}").why
    monkeypatch.setenv(limits.DOCUMENT_VARIABLE, "2")
    assert len(documents(f"jsonl:{tmp_path}")[0]) == 1 << 20
    monkeypatch.setenv(limits.DOCUMENT_VARIABLE, "-2")
    assert refused(f"jsonl:{tmp_path}").exit_code == 2


def test_a_long_line_belongs_to_one_part_only(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    texts = ["x" * 5000, "y", "z" * 3000]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr("data_pipelines.records._RANGE", 64)
    monkeypatch.setattr("data_pipelines.records.CHUNK", 16)
    assert documents(f"jsonl:{path}") == texts


KINDS = [
    pa.string_view(),
    pa.large_string(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_text_column_is_read(tmp_path, kind):
    pq.write_table(
        pa.table({"text": pa.array(["x", None, "ü"]).cast(kind)}), tmp_path / "a.parquet"
    )
    assert documents(f"parquet:{tmp_path}") == ["x", "", "ü"]


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)  # pyarrow refuses the fourth, in words
def test_half_a_pair_in_parquet_is_replaced(tmp_path, kind):
    data = pa.py_buffer(b"a\xed\xa0\x80b" + b"\xed\xa0\xbd\xed\xb8\x80" + b"ok")
    ends = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 5, 11, 13)))
    texts = pa.Array.from_buffers(pa.string(), 3, [None, ends, data])
    pq.write_table(pa.table({"text": texts.cast(kind)}), tmp_path / "a.parquet")
    assert documents(f"parquet:{tmp_path}") == ["a\ufffdb", "\U0001f600", "ok"]


def test_other_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    ends = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 3)))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"ok\xff")])
    pq.write_table(pa.table({"text": texts}), path)
    assert refused(f"parquet:{path}").where == f"{path}, row group 0, row 2"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pa.array([b"x"]), "binary"),
        (pa.array([["x"]]), "list<"),
        (pa.array([{"text": "x"}]), "struct<"),
        (pa.array([1]), "int64"),
        (pa.nulls(1), "null"),
        (pa.array([1]).dictionary_encode(), "int64"),
    ],
)
def test_a_column_that_is_no_text_is_refused(tmp_path, values, shown):
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    problem = refused(f"parquet:{tmp_path}")
    assert "no column of text 'text'" in problem.what
    assert f"text ({shown}" in problem.why


def test_two_columns_of_one_name_are_refused_and_others_do_no_harm(tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    table = pa.Table.from_arrays(columns, names=["text", "twice", "twice"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert documents(f"parquet:{tmp_path}") == ["a"]
    assert "2 columns 'twice'" in refused(f"parquet:{tmp_path}#twice").what


def test_a_column_whose_name_looks_like_a_nested_one(tmp_path):
    table = pa.table({"a": pa.array([{"b": "nested"}]), "a.b": ["flat"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert documents(f"parquet:{tmp_path}#a.b") == ["flat"]


def write_bomb(path, delta):
    """A few hundred bytes that unpack to 100 MB of text."""
    long = "a" * 100_000
    if delta:  # each text is all of the one before it, and a little more
        table = pa.table({"text": [long + str(i) for i in range(1000)]})
        kept = {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}
    else:
        table = pa.table({"text": pa.array([long] * 1000).dictionary_encode()})
        kept = {"dictionary_pagesize_limit": 1 << 30}
    pq.write_table(table, path, compression="brotli", store_schema=False, **kept)


@pytest.mark.parametrize("delta", [False, True])
def test_what_unpacks_beyond_measure_is_refused_in_little_memory(tmp_path, monkeypatch, delta):
    path = tmp_path / "a.parquet"
    write_bomb(path, delta)
    assert path.stat().st_size < 3000
    monkeypatch.setattr(reader, "FREE_OF_RATIO", 10_000_000)
    monkeypatch.setattr(reader, "_MEMORY", 1_000_000)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        problem = refused(f"parquet:{path}")
        most = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    assert "1000 times its size" in problem.why
    assert most < 15_000_000  # the 10 MB that the test keeps, and what is unpacked at once


def test_a_page_is_measured_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 100_000]}), path, use_dictionary=False)
    (chunk,) = chunks_of(path, "text")
    assert 100_000 <= largest_page(path, chunk) < 101_000
    monkeypatch.setattr(reader, "MAX_PAGE", 99_999)
    assert "a page unpacks to 100," in refused(f"parquet:{path}").why


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("statistics", [True, False])
def test_pages_of_all_sizes_are_walked(tmp_path, version, statistics):
    path = tmp_path / "a.parquet"
    texts = [str(i) * (i % 700) for i in range(3000)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        data_page_size=2000,
        data_page_version=version,
        write_statistics=statistics,
        write_page_checksum=True,
        compression="zstd",
    )
    assert documents(f"parquet:{path}") == texts


@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_damaged(data):
    with suppress(ValueError, IndexError):
        _struct(data, 0, 0)


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_byte_is_read_or_refused(tmp_path_factory, at, byte):
    path = tmp_path_factory.mktemp("damaged") / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(20)]}), path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data)
    with suppress(DataProblem):
        "".join(open_text(f"parquet:{path}").chunks())


def test_nulls_without_end_cost_nothing(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.nulls(3_000_000, pa.string())}), path)
    assert "".join(open_text(f"parquet:{path}").chunks()) == ""


def test_a_part_without_rows_is_empty_and_no_damage(tmp_path):
    """As Spark writes it of an empty partition."""
    for name, values in (("a", []), ("c", ["text"])):
        pq.write_table(
            pa.table({"text": pa.array(values, pa.string())}), tmp_path / f"{name}.parquet"
        )
    source = open_text(f"parquet:{tmp_path}")
    assert "".join(source.chunks()).strip() == "text"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": 5}', "'text' is a number; its fields: text"),
        ('{"text": {"a": 1}}', "'text' is an object; its fields: text"),
        ('{"body": "x"}', "'text' is missing; its fields: body"),
        ('{"n": ' + "9" * 9000 + "}", "a number in it has more than 4300 digits"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, line, why):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(DataProblem) as caught:
        list(open_text(f"jsonl:{tmp_path / 'a.jsonl'}").chunks())
    assert caught.value.why == why
