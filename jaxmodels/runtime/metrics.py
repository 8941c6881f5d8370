"""metrics.jsonl, one line for each step, and the same numbers for TensorBoard."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from jaxmodels.runtime.files import write_text

SECONDS = 10.0  # after so many, numbers are put on the disk for those who watch a run


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class Lines:
    """A file of JSON lines, one a step; on resume, what came after the checkpoint is taken back.

    Args:
        path: the file.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, path: Path, step: int):
        kept = [record for record in read(path) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.last: dict[str, Any] = kept[-1] if kept else {}
        """The record of the step that the run continues from."""
        self.evaluated = [record for record in kept if "valid_loss" in record]
        """The records up to it that hold an evaluation."""
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Adds the record of one step."""
        self._file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Puts everything on the disk; called before a checkpoint, which must not be ahead."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()


class Silent:
    """Takes records and keeps none: what all processes have but the first."""

    last: ClassVar[dict[str, Any]] = {}
    evaluated: ClassVar[list[dict[str, Any]]] = []

    def write(self, *_: Any) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog(Lines):
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
