"""Documents in files of JSON lines, and the digest of files of records."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.file_search import find, refuse_holes, split_name
from data_pipelines.files import naming
from data_pipelines.ids import without_surrogates
from data_pipelines.limits import max_document, too_long
from data_pipelines.reading import CHUNK, Part, Progress, Source

_COUNTED = 1 << 32  # bytes whose lines are counted to locate an error
_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
_KINDS[float] = "a number"
_RANGE = 1 << 24  # bytes of a JSON file in a part


def open_jsonl(spec: str, rest: str) -> Source:
    """`jsonl:PATH#FIELD`: a JSON object with a text on each line; large files in several parts."""
    path, field = split_name(rest)
    field = field or "text"
    found = find(path, ".jsonl", ".ndjson")
    refuse_holes(found.values())
    sizes = {name: file.stat().st_size for name, file in found.items()}
    parts = [
        Part(min(_RANGE, sizes[name] - at), partial(_read_lines, file, at, at + _RANGE, field))
        for name, file in found.items()
        for at in range(0, sizes[name], _RANGE)
    ]
    return Source(spec, tuple(parts), sizes, tuple(found.values()), {"field": field})


def digest_of(source: Source, progress: Progress | None = None) -> str:
    """sha256 of the files and of the field that is read, whatever the files' names."""
    total = hashlib.sha256(json.dumps(source.records, sort_keys=True).encode())
    done, size = 0, sum(source.files.values())
    for path in source.paths:
        sha256 = hashlib.sha256()
        with naming(path), path.open("rb") as file:
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
    """The texts of the lines that start in bytes start … stop − 1."""
    longest = max_document()
    with naming(path), path.open("rb") as file:
        if start:
            file.seek(start - 1)
            while not (rest := file.readline(CHUNK)).endswith(b"\n"):  # a line of the range before
                if not rest or file.tell() >= stop:
                    return
        while (at := file.tell()) < stop and (line := file.readline(longest + 1)):
            if len(line) > longest:
                raise too_long("line", _place(path, at))
            if line.strip():
                yield _text_of(line, field, path, at), True


def _text_of(line: bytes, field: str, path: Path, at: int) -> str:
    """The text of a line: a lone surrogate becomes U+FFFD, null an empty text."""
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf").rstrip())
    except json.JSONDecodeError as error:
        why = f"{error.msg}, column {error.colno}"
        raise _bad_line(path, at, "this line is not JSON", why) from None
    except RecursionError:
        why = "its brackets are nested too deeply"
        raise _bad_line(path, at, "this line cannot be read", why) from None
    except UnicodeDecodeError as error:
        raise _bad_line(path, at, "this line is not JSON", str(error)) from None
    except ValueError:
        why = "a number in it has more than 4300 digits"
        raise _bad_line(path, at, "this line cannot be read", why) from None
    if not isinstance(record, dict):
        raise _bad_line(path, at, f"this line has no text {field!r}", "no object")
    text = record.get(field, ...)
    if text is None:
        return ""
    if not isinstance(text, str):
        kind = f"{field!r} is {_KINDS.get(type(text), 'missing')}; "
        raise _bad_line(path, at, f"this line has no text {field!r}", kind + _fields(record))
    return without_surrogates(text)


def _fields(record: dict[str, Any]) -> str:
    shown = ", ".join(name[:80] for name in islice(record, 20))
    more = f" and {len(record) - 20} more" if len(record) > 20 else ""
    return f"its fields: {without_surrogates(shown)}{more}"


def _place(path: Path, at: int) -> str:
    """The line that starts at a byte; the byte itself where counting lines takes long."""
    if at > _COUNTED:
        return f"{path}, byte {at}"
    with naming(path), path.open("rb") as file:
        before = sum(file.read(min(CHUNK, at - i)).count(b"\n") for i in range(0, at, CHUNK))
    return f"{path}, line {before + 1}"


def _bad_line(path: Path, at: int, what: str, why: str) -> DataProblem:
    return DataProblem(
        what,
        where=_place(path, at),
        why=why,
        fix="repair the line, or name the field of the text: jsonl:PATH#FIELD",
    )
