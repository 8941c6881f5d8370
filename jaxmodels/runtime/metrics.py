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
from jaxmodels.runtime.files import json_object, write_text

SECONDS = 10.0  # after so many, numbers are put on the disk for those who watch a run


LINE = 30_000_000  # bytes; no line is longer, and a longer one is not read into memory
DAMAGED = ".damaged"
"""What the name of a file ends with that had lines which cannot be read."""


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; lines that cannot be read are left out."""
    return list(read_lines(path)[0])


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a file of JSON lines, one a step in rising order, and the numbers (from 1) of
    the lines that are none.

    What a kill cut off, behind the last end of a line, is neither.
    """
    records: list[dict[str, Any]] = []
    odd: list[int] = []
    if not path.exists():
        return records, odd
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            try:
                record = json_object(line)
            except ValueError:
                record = {}
            step = record.get("step")
            if type(step) is not int or step <= (records[-1]["step"] if records else 0):
                odd.append(number)
            elif all(_is_value(name, value) for name, value in record.items()):
                records.append(record)
            else:
                odd.append(number)
    return records, odd


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The complete lines of a file; one that is too long is given without its end."""
    while line := file.readline(LINE):
        whole = line.endswith(b"\n")
        while not whole and (rest := file.readline(LINE)):
            whole = rest.endswith(b"\n")
        if whole:
            yield line


def _is_value(name: str, value: Any) -> bool:
    """Whether a record may hold this: a number, null, or (of stats.jsonl) those of parameters."""
    if name == "params" and isinstance(value, dict):
        return all(isinstance(row, dict) for row in value.values())
    return value is None or type(value) in (int, float)


class JsonLines:
    """A file of JSON lines, one a step; on resume, what came after the checkpoint is taken back.

    Where lines cannot be read, the file is kept under another name, and this one goes on without
    them.

    Args:
        path: the file.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, path: Path, step: int):
        records, odd = read_lines(path)
        if odd:
            _keep_damaged(path, odd)
        kept = [record for record in records if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.last: dict[str, Any] = kept[-1] if kept else {}
        """The record of the step that the run continues from."""
        self.evaluated = [record for record in kept if "valid_loss" in record]
        """The records up to it that hold an evaluation."""
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Adds the record of one step; a number that is not finite, which JSON has none for, is
        null."""
        self._file.write(json.dumps({name: _number(x) for name, x in record.items()}) + "\n")

    def flush(self) -> None:
        """Puts everything on the disk; called before a checkpoint, which must not be ahead."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_damaged(path: Path, odd: list[int]) -> None:
    """Says which lines of a file cannot be read, and gives it a second name to be kept under."""
    kept, count = path.with_name(path.name + DAMAGED), 1
    while os.path.lexists(kept):
        count += 1
        kept = path.with_name(f"{path.name}{DAMAGED}-{count}")
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        shutil.copyfile(path, kept)
    lines = f"line {odd[0]} cannot be read and is"
    if len(odd) > 1:
        more = ", …" if len(odd) > 5 else ""
        lines = f"{len(odd)} lines ({', '.join(map(str, odd[:5]))}{more}) cannot be read and are"
    say(f"{path.name}: {lines} left out; the file as it was is kept as {kept}")


class NullLog:
    """Takes records and keeps none: what all processes have but the first."""

    last: ClassVar[dict[str, Any]] = {}
    evaluated: ClassVar[list[dict[str, Any]]] = []

    def write(self, *_: Any) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog(JsonLines):
    """metrics.jsonl of a run, and TensorBoard's files; both are put on the disk every `SECONDS`.

    Args:
        run: the run directory.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, run: Path, step: int):
        # The writer that waits for the disk itself: `SummaryWriter` hands each number to two
        # threads, which took the host longer than calling the step did.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        super().__init__(run / "metrics.jsonl", step)
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Names hold the second: a run that resumes within one takes another all the same.
        self._board = EventsWriter(str(folder / "events"), f".{step}")
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        # TensorBoard drops what files before this one say of the steps to come.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._show(step + 1, session_log=start)
        self._flushed = time.monotonic()

    def write(self, record: dict[str, Any]) -> None:
        """Adds the record of one step; its numbers other than `step` go to TensorBoard."""
        super().write(record)
        value = self._summary.Value
        values = [value(tag=name, simple_value=x) for name, x in record.items() if name != "step"]
        self._show(record["step"], summary=self._summary(value=values))
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def _show(self, step: int, **what: Any) -> None:
        self._board.write_event(self._event(wall_time=time.time(), step=step, **what))

    def flush(self) -> None:
        """Puts everything on the disk."""
        super().flush()
        self._board.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        super().close()
        self._board.close()


@contextmanager
def _without_torch() -> Iterator[None]:
    """Imports as if there were no torch: tensorboardX takes it for tensors that it never gets here.

    That import was half of the time from the command to the first step of a tiny preset.
    """
    modules: dict[str, Any] = sys.modules
    if "torch" in modules:
        yield
        return
    modules["torch"] = None  # what makes an import fail, says the language reference
    try:
        yield
    finally:
        del modules["torch"]
