"""Plain text: files, and the prose that comes with Python."""

import codecs
import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_pipelines.errors import DataProblem
from data_pipelines.file_search import find, refuse_holes
from data_pipelines.files import naming
from data_pipelines.reading import Part, Source


def open_pydoc() -> Source:
    """The topics of the Python reference, each a document."""
    topics = importlib.import_module("pydoc_data.topics").topics
    names = sorted(topics)
    sizes = {name: len(topics[name].encode()) for name in names}
    parts = (Part(sizes[name], partial(_read_string, topics[name])) for name in names)
    return Source("pydoc", tuple(parts), sizes)


def open_files(spec: str, path: str) -> Source:
    """The files of `text:PATH`, each a document."""
    found = find(path, ".txt")
    refuse_holes(found.values())
    sizes = {name: file.stat().st_size for name, file in found.items()}
    parts = (Part(sizes[name], partial(_read_file, file)) for name, file in found.items())
    return Source(spec, tuple(parts), sizes, tuple(found.values()))


def _read_string(text: str, size: int) -> Iterator[tuple[str, bool]]:
    yield from ((text[i : i + size], i == 0) for i in range(0, len(text), size))


def _read_file(path: Path, size: int) -> Iterator[tuple[str, bool]]:
    """Streams a UTF-8 file unchanged, but for a leading byte order mark."""
    offset, rest, starts = 0, b"", True  # bytes decoded, and those of an incomplete character
    with naming(path), path.open("rb") as file:
        while True:
            block = file.read(size)
            data = rest + block
            _refuse_binary(path, offset, data)
            try:
                text, used = codecs.utf_8_decode(data, "strict", not block)
            except UnicodeDecodeError as error:
                raise _not_text(
                    path, offset + error.start, f"0x{data[error.start]:02x}: {error.reason}"
                ) from None
            if text and offset == 0:
                text = text.removeprefix("\ufeff")
            offset, rest = offset + used, data[used:]
            if text:
                yield text, starts
                starts = False
            if not block:
                return


def _refuse_binary(path: Path, offset: int, data: bytes) -> None:
    if (at := data.find(0)) >= 0:
        raise _not_text(path, offset + at, "a zero byte: this is a binary file, or UTF-16")


def _not_text(path: Path, offset: int, why: str) -> DataProblem:
    return DataProblem(
        "this is not UTF-8 text",
        where=f"{path}, byte {offset}",
        why=why,
        fix="leave the file out, or convert it: iconv -f ENCODING -t UTF-8",
    )
