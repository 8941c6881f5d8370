"""Documents in Parquet files, in memory that is bounded whatever a file unpacks to."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.file_search import find, split_name
from data_pipelines.ids import without_surrogates
from data_pipelines.limits import FREE_OF_RATIO, MAX_PAGE, MAX_RATIO, max_document, too_long
from data_pipelines.parquet_pages import Chunk, chunks_of, largest_page
from data_pipelines.reading import Part, Source

_ROWS, _MEMORY = 1 << 14, 1 << 26  # rows in memory at a time, and their bytes


def open_parquet(spec: str, rest: str) -> Source:
    """`parquet:PATH#COLUMN`: a text per row, null an empty one; a part is a row group.

    Raises:
        DataProblem: (corrupt) a file is not Parquet, or does not have one such column of text.
    """
    path, column = split_name(rest)
    column = column or "text"
    found = find(path, ".parquet")
    parts = [part for file in found.values() for part in _row_groups(file, column)]
    sizes = {name: file.stat().st_size for name, file in found.items()}
    return Source(spec, tuple(parts), sizes, tuple(found.values()), {"column": column})


def _row_groups(path: Path, column: str) -> list[Part]:
    from pyarrow import lib, parquet

    try:
        with parquet.ParquetFile(path) as file:
            fields, groups = list(file.schema_arrow), file.num_row_groups
        names = [field.name for field in fields]
    except (lib.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _bad(path, "this is not a readable Parquet file", str(error)) from None
    if names.count(column) > 1:
        raise _bad(path, f"there are {names.count(column)} columns {column!r}", _table(fields))
    if column not in names or not _is_text(fields[names.index(column)].type):
        raise _bad(path, f"there is no column of text {column!r}", _table(fields))
    try:
        chunks = chunks_of(path, column)
        if len(chunks) != groups:
            raise ValueError(f"its footer lists {len(chunks)} row groups, but counts {groups}")
    except ValueError as error:
        raise _bad(path, "this is not a readable Parquet file", str(error)) from None
    return [
        Part(chunk.unpacked, partial(_read_rows, path, i, chunk, column))
        for i, chunk in enumerate(chunks)
    ]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _table(fields: list[Any]) -> str:
    """The columns of a file in readable form."""
    shown = ", ".join(f"{field.name} ({str(field.type)[:80]})" for field in fields[:20])
    return f"columns: {shown}" + (f" and {len(fields) - 20} more" if len(fields) > 20 else "")


def _read_rows(
    path: Path, group: int, chunk: Chunk, column: str, _: int
) -> Iterator[tuple[str, bool]]:
    from pyarrow import lib, parquet

    row, longest, read = 0, max_document(), 0
    try:
        # Read on demand: a column chunk need not fit into memory.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            page = largest_page(path, chunk)
            if page > MAX_PAGE:
                raise ValueError(f"a page unpacks to {page:,} bytes; at most {MAX_PAGE:,} are read")
            most = max(FREE_OF_RATIO, MAX_RATIO * chunk.packed)
            # No value is longer than its page or its dictionary, which is a page too.
            rows = max(1, min(_ROWS, _MEMORY // max(1, page)))
            for batch in file.iter_batches(rows, row_groups=[group], columns=[column]):
                values = batch.column(batch.schema.get_field_index(column))
                if values.null_count == len(values):  # a few bytes may hold a billion nulls
                    row += len(values)
                    continue
                for text in _texts(values, f"{path}, row group {group}", row):
                    size = len(text) if text.isascii() else len(text.encode())
                    if size > longest:
                        raise too_long("row", f"{path}, row group {group}, row {row + 1}")
                    read += size
                    if read > most:
                        raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size")
                    row += 1
                    yield text, True
    except DataProblem:
        raise
    except (lib.ArrowException, ValueError, OSError) as error:
        where = f"row group {group} cannot be read"
        raise _bad(path, where, str(error), f", column {column!r}") from None


def _texts(values: Any, where: str, row: int) -> Iterator[str]:
    """The texts of an array; null becomes an empty one, a lone surrogate U+FFFD.

    Args:
        values: pyarrow's array.
        where: the file and the row group, for errors.
        row: the number of the first value.
    """
    try:
        yield from (text or "" for text in values.to_pylist())
    except UnicodeDecodeError:
        for i in range(len(values)):
            yield _text(values[i], f"{where}, row {row + i + 1}")


def _text(value: Any, where: str) -> str:
    if hasattr(value, "dictionary"):  # an index into a dictionary of texts
        value = value.dictionary[value.index.as_py()] if value.is_valid else value
    if not value.is_valid:
        return ""
    try:
        text = value.as_buffer().to_pybytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        why = f"byte {error.start} of it: {error.reason}"
        raise DataProblem(
            "this text is not UTF-8", where=where, why=why, fix="repair or leave out the row"
        ) from None
    return without_surrogates(text)


def _bad(path: Path, what: str, why: str, more: str = "") -> DataProblem:
    return DataProblem(
        what,
        where=f"{path}{more}",
        why=why,
        fix="give complete Parquet files, and the column of the text: parquet:PATH#COLUMN",
    )
