"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, Trackio (`--report-to`).

A tracker that fails is dropped with a message; the run goes on. A resumed run continues the same
one: RUN/trackers.json keeps its name there.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from jaxmodels.cli import say
from jaxmodels.files import write_text
from jaxmodels.reading import read_json

NAMES = "trackers.json"


class Tracker(Protocol):
    """What shows metrics; every method may raise anything."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""

    def flush(self) -> None:
        """Makes what was logged visible."""

    def close(self) -> None:
        """Flushes, and ends."""


class Trackers:
    """All trackers of a run, each as long as it works.

    Args:
        names: of KINDS.
        run: the run directory; its config.json is shown as the run's settings.
        step: the step that the run continues from; 0 for a new run.
    """

    def __init__(self, names: Sequence[str], run: Path, step: int):
        self._open: dict[str, Tracker] = {}
        for name in names:
            with self._guarded(name):
                self._open[name] = KINDS[name](run, step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        for name, tracker in tuple(self._open.items()):
            with self._guarded(name):
                tracker.log(step, numbers)

    def flush(self) -> None:
        """Makes what was logged visible."""
        for name, tracker in tuple(self._open.items()):
            with self._guarded(name):
                tracker.flush()

    def close(self) -> None:
        """Flushes, and ends."""
        for name, tracker in tuple(self._open.items()):
            with self._guarded(name):
                tracker.close()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"{name} failed and gets no more metrics; metrics.jsonl has them all: {reason}")


class TensorBoard:
    """Event files in RUN/tensorboard, written synchronously."""

    def __init__(self, run: Path, step: int):
        # `SummaryWriter` hands each number to two threads, which took the host longer than
        # dispatching the step.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        # The writer puts the time in seconds into the name; the step makes it unique.
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        # From here on TensorBoard ignores later steps of earlier files.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step + 1, session_log=start)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        value = self._summary.Value
        values = [value(tag=name, simple_value=x) for name, x in numbers.items()]
        self._write(step, summary=self._summary(value=values))

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **what))

    def flush(self) -> None:
        """Flushes to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its environment variables choose project, entity and mode.

    Without network: WANDB_MODE=offline, and later `wandb sync RUN/wandb/offline-run-*`.
    """

    def __init__(self, run: Path, step: int):
        import wandb

        self._run = wandb.init(
            **({} if "WANDB_PROJECT" in os.environ else {"project": "jaxmodels"}),
            dir=str(run),
            id=_name(run, "wandb"),
            name=run.absolute().name,
            resume="allow",
            config=_settings(run),
        )
        # Our step is the axis: theirs only rises, and a run may resume from an earlier step.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        self._run.log({"step": step, **numbers})

    def flush(self) -> None:
        """Nothing: it is sent in the background."""

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class Trackio:
    """A run of Trackio: a local database, or a Space with TRACKIO_SPACE_ID; `trackio show`."""

    def __init__(self, run: Path, step: int):
        import trackio

        self._trackio = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "jaxmodels"),
            name=_name(run, "trackio"),
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
            config=_settings(run),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        self._trackio.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Nothing: it is written in the background."""

    def close(self) -> None:
        """Waits until everything is written."""
        self._trackio.finish()


KINDS: dict[str, Callable[[Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""Name in --report-to → what opens it."""


def _settings(run: Path) -> dict[str, Any]:
    """The run's settings, as trackers show them."""
    try:
        stored = read_json(run / "config.json")
    except (OSError, ValueError):
        return {}
    return {name: stored[name] for name in ("arch", "preset", "model", "recipe") if name in stored}


def _name(run: Path, kind: str) -> str:
    """The run's name in a tracker, made once: the same from session to session."""
    path = run / NAMES
    names: dict[str, str] = {}
    with suppress(OSError, ValueError):  # missing or damaged: it gets a new one
        names = {k: v for k, v in read_json(path).items() if isinstance(v, str)}
    if kind not in names:
        names[kind] = f"{run.absolute().name[:40]}-{uuid.uuid4().hex[:8]}"
        write_text(path, json.dumps(names, indent=1) + "\n")
    return names[kind]


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
