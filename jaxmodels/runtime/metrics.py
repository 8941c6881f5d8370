"""metrics.jsonl, one line for each step, and the same numbers for TensorBoard."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from jaxmodels.cli import say
from jaxmodels.files import write_text
from jaxmodels.reading import json_object

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
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.last: dict[str, Any] = kept[-1] if kept else {}
        """The record of the step that the run continues from."""
        self.evaluated = [record for record in kept if "valid_loss" in record]
        """The records up to that step that have an evaluation."""
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends the record of one step; NaN and infinities, which JSON lacks, become null."""
        self._file.write(json.dumps({name: _number(x) for name, x in record.items()}) + "\n")

    def flush(self) -> None:
        """Flushes to disk; called before a checkpoint is saved, so that the log is never behind."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()


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

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog(JsonLines):
    """metrics.jsonl of a run and TensorBoard's files, flushed to disk every `SECONDS`.

    Args:
        run: the run directory.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, run: Path, step: int):
        # The synchronous writer: `SummaryWriter` hands each number to two threads, which took the
        # host longer than dispatching the step.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        super().__init__(run / "metrics.jsonl", step)
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        # The writer puts the time in seconds into the name; the step makes it unique.
        self._board = EventsWriter(str(folder / "events"), f".{step}")
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        # From here on TensorBoard ignores later steps of earlier files.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._show(step + 1, session_log=start)
        self._flushed = time.monotonic()

    def write(self, record: dict[str, Any]) -> None:
        """Appends the record of one step; its numbers other than `step` go to TensorBoard too."""
        super().write(record)
        value = self._summary.Value
        values = [value(tag=name, simple_value=x) for name, x in record.items() if name != "step"]
        self._show(record["step"], summary=self._summary(value=values))
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def _show(self, step: int, **what: Any) -> None:
        self._board.write_event(self._event(wall_time=time.time(), step=step, **what))

    def flush(self) -> None:
        """Flushes to disk."""
        super().flush()
        self._board.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        super().close()
        self._board.close()


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch from imports: tensorboardX imports it for tensors that we never pass.

    That import was half of the time from the command to the first step of a tiny preset.
    """
    modules: dict[str, Any] = sys.modules
    if "torch" in modules:
        yield
        return
    modules["torch"] = None  # makes `import torch` fail (language reference, 5.3.1)
    try:
        yield
    finally:
        del modules["torch"]
