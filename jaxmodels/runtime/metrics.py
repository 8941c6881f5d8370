"""metrics.jsonl, one line for each step, and the same numbers for trackers."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from jaxmodels.cli import say
from jaxmodels.files import write_text
from jaxmodels.reading import json_object
from jaxmodels.runtime.trackers import Trackers

SECONDS = 10.0  # between flushes to disk, for those who watch a run


LINE = 30_000_000  # bytes; the longest line that is read into memory
DAMAGED = ".damaged"
"""Suffix under which a file is kept that had unreadable lines."""


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; unreadable lines are skipped."""
    return list(read_lines(path)[0])


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a file of JSON lines, one for each step in rising order, and the numbers
    (from 1) of the lines that are not records.

    An incomplete last line, left by a kill, is neither.
    """
    records: list[dict[str, Any]] = []
    invalid: list[int] = []
    if not path.exists():
        return records, invalid
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            try:
                record = json_object(line)
            except ValueError:
                record = {}
            step = record.get("step")
            if type(step) is not int or step <= (records[-1]["step"] if records else 0):
                invalid.append(number)
            elif all(_is_value(name, value) for name, value in record.items()):
                records.append(record)
            else:
                invalid.append(number)
    return records, invalid


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The complete lines of a file; one that is too long is truncated."""
    while line := file.readline(LINE):
        complete = line.endswith(b"\n")
        while not complete and (rest := file.readline(LINE)):
            complete = rest.endswith(b"\n")
        if complete:
            yield line


def _is_value(name: str, value: Any) -> bool:
    """Whether a record may hold this: a number, null, or (in stats.jsonl) those by parameter."""
    if name == "params" and isinstance(value, dict):
        return all(isinstance(row, dict) for row in value.values())
    return value is None or type(value) in (int, float)


class JsonLines:
    """A file of JSON lines, one for each step; on resume, lines after the checkpoint are dropped.

    A file with unreadable lines is kept under another name, and continued without them.

    Args:
        path: the file.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, path: Path, step: int):
        records, invalid = read_lines(path)
        if invalid:
            _keep_damaged(path, invalid)
        kept = [record for record in records if record["step"] <= step]
        write_text(path, "".join(map(_line, kept)))
        self.last: dict[str, Any] = kept[-1] if kept else {}
        """The record of the step that the run continues from."""
        self.evaluated = [record for record in kept if "valid_loss" in record]
        """The records up to that step that have an evaluation."""
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends the record of one step; NaN and infinities, which JSON lacks, become null."""
        self._file.write(_line(record))

    def amend(self, more: dict[str, Any]) -> None:
        """Adds numbers to the last record, that of the step that the run continues from."""
        if not self.last:
            return
        self._file.close()
        self.last |= more
        records = read(self._path)[:-1]
        write_text(self._path, "".join(map(_line, [*records, self.last])))
        self._file = self._path.open("a", encoding="utf-8")

    def flush(self) -> None:
        """Flushes to disk; called before a checkpoint is saved, so that the log is never behind."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps({name: _number(x) for name, x in record.items()}) + "\n"


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_damaged(path: Path, invalid: list[int]) -> None:
    """Prints which lines of a file are unreadable, and keeps it under a second name."""
    kept, count = path.with_name(path.name + DAMAGED), 1
    while os.path.lexists(kept):
        count += 1
        kept = path.with_name(f"{path.name}{DAMAGED}-{count}")
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        shutil.copyfile(path, kept)
    lines = f"line {invalid[0]} cannot be read and is"
    if len(invalid) > 1:
        more = ", …" if len(invalid) > 5 else ""
        numbers = ", ".join(map(str, invalid[:5]))
        lines = f"{len(invalid)} lines ({numbers}{more}) cannot be read and are"
    say(f"{path.name}: {lines} left out; the file as it was is kept as {kept}")


class NullLog:
    """A log that drops its records, for all processes but the primary."""

    last: ClassVar[dict[str, Any]] = {}
    evaluated: ClassVar[list[dict[str, Any]]] = []

    def write(self, *_: Any) -> None:
        """Does nothing."""

    def amend(self, *_: Any) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog(JsonLines):
    """metrics.jsonl of a run, flushed to disk every `SECONDS`, and its trackers.

    Args:
        run: the run directory.
        step: the step that the run continues from; 0 for a new run.
        trackers: where the numbers go too, by the names of --report-to.
    """

    def __init__(self, run: Path, step: int, trackers: Sequence[str] = ("tensorboard",)):
        super().__init__(run / "metrics.jsonl", step)
        self._trackers = Trackers(trackers, run, step)
        self._flushed = time.monotonic()

    def write(self, record: dict[str, Any]) -> None:
        """Appends the record of one step; its numbers other than `step` go to the trackers too."""
        super().write(record)
        self._trackers.log(record["step"], {k: x for k, x in record.items() if k != "step"})
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def amend(self, more: dict[str, Any]) -> None:
        """Adds numbers to the last record; they go to the trackers too."""
        super().amend(more)
        if self.last:
            self._trackers.log(self.last["step"], more)

    def flush(self) -> None:
        """Flushes to disk."""
        super().flush()
        self._trackers.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        super().close()
        self._trackers.close()
