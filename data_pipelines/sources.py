"""Where text comes from: restartable streams of text in bounded memory."""

import codecs
import difflib
import glob
import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.errors import USAGE, DataProblem

CHUNK = 1 << 20
"""Bytes read at a time."""

SPECS = {
    "pydoc": "English prose of the Python reference; comes with every Python (465,000 characters)",
    "text:PATH": "UTF-8 text: a file, a folder (all *.txt below it) or a glob pattern",
    "bin:PATH": "tokens: a folder that `data prepare` wrote, or a raw file (?dtype=uint32)",
}
"""Form of a spec → what it is."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


@dataclass(frozen=True)
class Document:
    """One piece of a source."""

    name: str
    """What the manifest calls it."""
    bytes: int
    """Its size in UTF-8."""
    read: Callable[[int], Iterator[str]]
    """Streams its text, given the number of bytes to read at a time."""


@dataclass(frozen=True)
class Source:
    """Text that can be read again and again: documents with a blank line between them."""

    spec: str
    documents: tuple[Document, ...]

    @property
    def bytes(self) -> int:
        """Size of all documents together."""
        return sum(document.bytes for document in self.documents)

    def chunks(self, size: int = CHUNK) -> Iterator[str]:
        """The text in order, in pieces made from at most `size` bytes each.

        Raises:
            DataProblem: (corrupt) a document is not UTF-8 text; names the file and the byte.
        """
        started = False
        for document in self.documents:
            fresh = started  # an empty document adds nothing, not even a blank line
            for text in document.read(size):
                if fresh:
                    yield "\n\n"
                fresh, started = False, True
                yield text


class Reading:
    """One pass over a source: iterate it, then ask what went by.

    Args:
        source: what to read.
        stage: what the pass is for, as told to `progress`.
        progress: called after every piece.
    """

    def __init__(self, source: Source, stage: str = "reading", progress: Progress | None = None):
        self.source, self.stage, self.progress = source, stage, progress
        self.characters = 0
        self._sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        done = 0
        for text in self.source.chunks():
            data = text.encode()
            self._sha256.update(data)
            self.characters += len(text)
            done += len(data)
            yield text
            if self.progress:
                self.progress(self.stage, min(done, self.source.bytes), self.source.bytes)

    def fingerprint(self) -> dict[str, Any]:
        """The sha256 of the text (JSON-able), and sizes that help to tell what changed."""
        return {
            "sha256": self._sha256.hexdigest(),
            "characters": self.characters,
            "documents": {document.name: document.bytes for document in self.source.documents},
        }


def fingerprint(source: Source, progress: Progress | None = None) -> dict[str, Any]:
    """Reads a source through for its fingerprint alone."""
    reading = Reading(source, "checking the text", progress)
    for _ in reading:
        pass
    return reading.fingerprint()


def open_text(spec: str) -> Source:
    """The text that a spec names: `pydoc` or `text:PATH`.

    Raises:
        DataProblem: (usage) the spec is none of these; (corrupt) nothing is found there.
    """
    if spec == "pydoc":
        topics = importlib.import_module("pydoc_data.topics").topics
        return Source(
            spec,
            tuple(
                Document(name, len(topics[name].encode()), partial(_read_string, topics[name]))
                for name in sorted(topics)
            ),
        )
    kind, _, path = spec.partition(":")
    if kind == "text" and path:
        files = _find(path)
        return Source(
            spec,
            tuple(
                Document(name, file.stat().st_size, partial(_read_file, file))
                for name, file in files.items()
            ),
        )
    raise unknown_spec(spec)


def unknown_spec(spec: str) -> DataProblem:
    """The error for a spec of no known form; suggests near ones."""
    forms = {form.partition(":")[0]: form for form in SPECS}
    kind = spec.partition(":")[0]
    near = difflib.get_close_matches(kind, forms, n=2) or ([kind] if kind in forms else [])
    if spec and Path(spec).exists():
        fix = f"did you mean text:{spec}?"
    elif near:
        fix = f"did you mean {' or '.join(forms[name] for name in near)}?"
    else:
        fix = "see `jaxmodels data list`"
    return DataProblem(
        f"unknown data: {spec!r}", why=f"known: {', '.join(SPECS)}", fix=fix, exit_code=USAGE
    )


def _find(text: str) -> dict[str, Path]:
    """The files that a path names, by the name that the manifest gives them, in order."""
    path = Path(text).expanduser()
    if path.is_dir():
        found = {p.relative_to(path).as_posix(): p for p in path.rglob("*.txt") if p.is_file()}
        missing = "the folder has no *.txt file in it or below it"
    elif path.exists():
        found = {path.name: path} if path.is_file() else {}
        missing = "it is not a regular file; text is read more than once"
    else:
        names = glob.glob(str(path), recursive=True)
        found = {Path(name).as_posix(): Path(name) for name in names if Path(name).is_file()}
        missing = "no such file or folder, and as a pattern it matches no file"
    if not found:
        raise DataProblem("there is no text", where=text, why=missing, fix="check the path")
    return dict(sorted(found.items()))


def _read_string(text: str, size: int) -> Iterator[str]:
    yield from (text[i : i + size] for i in range(0, len(text), size))


def _read_file(path: Path, size: int) -> Iterator[str]:
    """Streams a UTF-8 file as it is (newlines too), without a leading byte order mark."""
    offset, rest = 0, b""  # bytes decoded so far, and those of an unfinished character
    with path.open("rb") as file:
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
                yield text
            if not block:
                return


def _refuse_binary(path: Path, offset: int, data: bytes) -> None:
    if (at := data.find(0)) >= 0:
        raise _not_text(path, offset + at, "a zero byte; this is a binary file, or UTF-16")


def _not_text(path: Path, offset: int, why: str) -> DataProblem:
    return DataProblem(
        "this is not UTF-8 text",
        where=f"{path}, byte {offset}",
        why=why,
        fix="leave the file out, or convert it: iconv -f ENCODING -t UTF-8",
    )
