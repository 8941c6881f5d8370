"""metrics.jsonl, one line for each step, and the same numbers for TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from jaxmodels.runtime.files import write_text


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
    """metrics.jsonl of a run, and TensorBoard's files.

    Args:
        run: the run directory.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, run: Path, step: int):
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary

        super().__init__(run / "metrics.jsonl", step)
        self._summary = Summary
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds the record of one step; its numbers other than `step` go to TensorBoard.

        They go there as one event: `add_scalar` makes one of each number, which cost the host more
        than calling the step did.
        """
        super().write(record)
        value = self._summary.Value
        values = [value(tag=name, simple_value=x) for name, x in record.items() if name != "step"]
        self._board.file_writer.add_summary(self._summary(value=values), record["step"])

    def flush(self) -> None:
        """Puts everything on the disk."""
        super().flush()
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes."""
        super().close()
        self._board.close()
