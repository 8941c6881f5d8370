"""The metrics of each step on their way from the device to the log, the bar and the outcome."""

import math
import time
from pathlib import Path
from typing import Any

import jax

from jaxmodels.recipe import Recipe
from jaxmodels.runtime.finite import NotFinite
from jaxmodels.runtime.metrics import MetricsLog, NullLog
from jaxmodels.runtime.multihost import processes
from jaxmodels.runtime.reporting.progress import Progress
from jaxmodels.runtime.runs.outcome import Outcome
from jaxmodels.runtime.stats import StatsLog
from jaxmodels.runtime.step import StepMetrics


class StepRecords:
    """Takes the metrics of each step (`add`), waits for them (`read`) and logs them (`write`).

    The metrics of a step are read while the devices compute the next.

    Args:
        run: the run directory; its logs continue from `outcome.step`.
        recipe: the run's.
        outcome: whose loss, speeds and step time are kept up to date.
        progress: shows each step.
        sizes: path of a parameter → number of elements.
        ideal_seconds: of a step at the devices' peak rate; 0 where that is unknown.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        outcome: Outcome,
        progress: Progress,
        sizes: dict[str, int],
        ideal_seconds: float,
    ):
        self.recipe, self.outcome, self.progress = recipe, outcome, progress
        self.ideal_seconds = ideal_seconds
        self.log: MetricsLog | NullLog = NullLog()
        self.stats: StatsLog | NullLog = NullLog()
        if processes.is_primary():
            self.log = MetricsLog(run, outcome.step, recipe.trackers)
            self.stats = StatsLog(run, outcome.step, recipe.stats_every, sizes)
        outcome.loss = processes.broadcast(self.log.last.get("loss"))
        self.valid_losses: list[float | None] = processes.broadcast(
            [record["valid_loss"] for record in self.log.evaluated]
        )
        """Validation losses of the steps before."""
        self.flag = 0
        """The highest flag that a process passed to a step since the last save."""
        self.jump = 0.0
        """The largest jump of the loss since the last save."""
        # Metrics of the last step: on the device, then on the host, then in the log.
        self._pending: tuple[dict[str, Any], dict[str, int], StepMetrics] | None = None
        self._record: dict[str, Any] | None = None
        self._step_stats: jax.Array | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measures the time of the next step from now."""
        self._last_time = time.monotonic()

    def add(self, step: int, counts: dict[str, int], metrics: StepMetrics) -> None:
        """Takes the metrics of a step, which may not be computed yet.

        Args:
            step: its number.
            counts: unit → number in its batch (`progress.batch_counts`).
            metrics: what the step returned.
        """
        self._pending = {"step": step}, counts, metrics

    def read(self) -> None:
        """Waits for the last step's metrics and measures its time; the wait counts as training.

        Raises:
            NotFinite: its loss is not finite.
        """
        if self._pending is None:
            return
        (record, counts, metrics), self._pending = self._pending, None
        with self.outcome.timed("train"):
            record |= metrics.read()
        if metrics.stop is not None:
            self.flag = max(self.flag, int(metrics.stop))
        self._step_stats = metrics.stats
        if not math.isfinite(record["loss"]):
            step = record["step"]
            raise NotFinite(f"the loss of step {step} is not finite", step)
        now = time.monotonic()
        self._detect_jump(record["step"], record["loss"])
        seconds, self._last_time = max(now - self._last_time, 1e-9), now
        self.outcome.loss = record["loss"]
        self._measure(record, counts, seconds)
        self._record = record

    def _measure(self, record: dict[str, Any], counts: dict[str, int], seconds: float) -> None:
        """Adds the step's speeds to its record and to the outcome, and shows the step."""
        out = self.outcome
        speeds = {f"{name}_per_second": count / seconds for name, count in counts.items()}
        record |= {name: round(speed, 1) for name, speed in speeds.items()}
        if self.ideal_seconds:
            speeds["mfu"] = self.ideal_seconds / seconds
            record["mfu"] = round(speeds["mfu"], 4)
        first = record["step"] == (out.resumed_from or 0) + 1  # it includes compilation
        if not first:
            out.smooth(speeds, seconds)
        left = (out.steps - record["step"]) * (out.step_seconds or seconds)
        self.progress.update(record["step"], record["loss"], {} if first else out.speeds, left)

    def _detect_jump(self, step: int, loss: float) -> None:
        """Notes a jump of the loss, after which a checkpoint is saved.

        The loss of a step is known while the next is running, so the state saved is that after
        either. The checkpoint before the jump is kept too.
        """
        jump = 0.0 if self.outcome.loss is None else loss - self.outcome.loss
        if self.recipe.jump and abs(jump) > self.recipe.jump:
            self.jump = max(self.jump, jump, key=abs)
            self.progress.say(f"step {step}: the loss jumped by {jump:+.4f}; saving a checkpoint")

    def write(self, **extra: float) -> None:
        """Logs the last step, with the metrics of its evaluation if there was one."""
        self.read()
        if self._record is not None:
            self.log.write(self._record | extra)
            self.stats.write(self._record["step"], self._step_stats)
            self._record = None

    def amend(self, extra: dict[str, float]) -> None:
        """Adds the metrics of an evaluation to the record of the step that the run continues from.

        Nothing may have been logged since.
        """
        self.log.amend(extra)

    def flush(self) -> None:
        """Flushes the logs to disk."""
        self.log.flush()
        self.stats.flush()

    def close(self) -> None:
        """Flushes and closes the logs; nothing is logged afterwards."""
        for log in (self.log, self.stats):
            log.close()
        self.log = self.stats = NullLog()
