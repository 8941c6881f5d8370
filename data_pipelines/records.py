"""Documents in files of records: JSON lines and Parquet."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.sources import CHUNK, Part, Progress, Source
from data_pipelines.text_files import find

_RANGE = 1 << 24  # bytes of a JSON file that make a part
_ROWS = 1024  # of a Parquet file that are in memory together


def open_jsonl(spec: str, rest: str) -> Source:
    """`jsonl:PATH#FIELD`: each line a JSON object with a text; large files in several parts."""
    path, _, field = rest.partition("#")
    field = field or "text"
    found = find(path, "*.jsonl", "*.ndjson")
    sizes = {name: file.stat().st_size for name, file in found.items()}
    parts = [
        Part(min(_RANGE, sizes[name] - at), partial(_read_lines, file, at, at + _RANGE, field))
        for name, file in found.items()
        for at in range(0, sizes[name], _RANGE)
    ]
    return Source(spec, tuple(parts), sizes, tuple(found.values()), {"field": field})


def open_parquet(spec: str, rest: str) -> Source:
    """`parquet:PATH#COLUMN`: each row a text; a part is a row group.

    Raises:
        DataProblem: (corrupt) a file is not Parquet, or has no such column of text.
    """
    path, _, column = rest.partition("#")
    column = column or "text"
    found = find(path, "*.parquet")
    parts = [part for file in found.values() for part in _row_groups(file, column)]
    sizes = {name: file.stat().st_size for name, file in found.items()}
    return Source(spec, tuple(parts), sizes, tuple(found.values()), {"column": column})


def digest_of(source: Source, progress: Progress | None = None) -> str:
    """sha256 of the files and of what is taken from them, whatever the files are called."""
    total = hashlib.sha256(json.dumps(source.records, sort_keys=True).encode())
    done, size = 0, sum(source.files.values())
    for path in source.paths:
        sha256 = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                sha256.update(block)
                done += len(block)
                if progress:
                    progress("checking the files", done, size)
        total.update(sha256.digest())
    return total.hexdigest()


def _read_lines(
    path: Path, start: int, stop: int, field: str, _: int
) -> Iterator[tuple[str, bool]]:
    """The texts of the lines that begin in bytes start … stop − 1."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the rest of a line that begins before
        while (at := file.tell()) < stop and (line := file.readline()):
            if line.strip():
                yield _text_of(line, field, path, at), True


def _text_of(line: bytes, field: str, path: Path, at: int) -> str:
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf").rstrip())
    except json.JSONDecodeError as error:
        why = f"{error.msg}, column {error.colno}"
        raise _bad_line(path, at, "this line is not JSON", why) from None
    except UnicodeDecodeError as error:
        raise _bad_line(path, at, "this line is not JSON", str(error)) from None
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        have = f"its fields: {', '.join(record)}" if isinstance(record, dict) else "no object"
        raise _bad_line(path, at, f"this line has no text {field!r}", have)
    return text


def _bad_line(path: Path, at: int, what: str, why: str) -> DataProblem:
    with path.open("rb") as file:
        before = sum(file.read(min(CHUNK, at - i)).count(b"\n") for i in range(0, at, CHUNK))
    return DataProblem(
        what,
        where=f"{path}, line {before + 1}",
        why=why,
        fix="repair the line, or name the field of the text: jsonl:PATH#FIELD",
    )


def _row_groups(path: Path, column: str) -> list[Part]:
    from pyarrow import lib, parquet, types

    try:
        with parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (lib.ArrowException, OSError) as error:
        raise _bad_parquet(path, "this is no readable Parquet file", str(error)) from None
    kind = schema.field(column).type if column in schema.names else None
    if kind is None or not (types.is_string(kind) or types.is_large_string(kind)):
        have = ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names)
        raise _bad_parquet(path, f"there is no column of text {column!r}", f"columns: {have}")
    return [
        Part(_column_bytes(metadata.row_group(i), column), partial(_read_rows, path, i, column))
        for i in range(metadata.num_row_groups)
    ]


def _column_bytes(group: Any, column: str) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)


def _read_rows(path: Path, group: int, column: str, _: int) -> Iterator[tuple[str, bool]]:
    from pyarrow import lib, parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield text or "", True  # a null is an empty document
    except (lib.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _bad_parquet(path, f"row group {group} cannot be read", str(error)) from None


def _bad_parquet(path: Path, what: str, why: str) -> DataProblem:
    return DataProblem(
        what,
        where=str(path),
        why=why,
        fix="give whole Parquet files, and the column of the text: parquet:PATH#COLUMN",
    )
