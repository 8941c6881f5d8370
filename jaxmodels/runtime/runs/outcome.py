"""How a call of `train` ended, without starting JAX."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jaxmodels.runtime.runs import rundir

STOPPED_EARLY = "stopped early"
"""The reason of a run that is done before its last step, because nothing improved any more."""


@dataclass
class Outcome:
    """How a call of `train` ended; written to summary.json."""

    reason: str = "done"
    step: int = 0
    steps: int = 0
    resumed_from: int | None = None
    loss: float | None = None
    valid_loss: float | None = None
    best_step: int | None = None
    best_valid_loss: float | None = None
    checkpoint: int | None = None
    tokens_per_second: float = 0.0
    images_per_second: float | None = None
    """None where batches hold no images."""
    mfu: float | None = None
    """Model FLOPs utilisation: operations of the model (without remat) a second, of the peak of all
    devices in bfloat16; smoothed. None where the peak is not known, as of a CPU."""
    reserve: float = 0.0
    """Seconds of the granted hours that were kept for the save at the end."""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("start", "train", "data", "eval", "save"), 0.0)
    )

    step_seconds: float = 0.0
    """Of a step after the first, smoothed."""

    @property
    def goodput(self) -> float | None:
        """The share of this call's time in which training steps ran; None before any time passed.

        All else is the start (with compilation), waiting for data, evaluations and saves.
        """
        whole = sum(self.seconds.values())
        return self.seconds["train"] / whole if whole else None

    def smooth(self, speeds: dict[str, float], seconds: float) -> None:
        """Takes note of the speed of a step: tokens_per_second, mfu, and its seconds.

        Times are averaged, and speeds through their reciprocals: a mean of speeds would be that of
        the quick steps, and contradict the time that a run takes.
        """
        before = self.step_seconds
        self.step_seconds = 0.9 * before + 0.1 * seconds if before else seconds
        for name, speed in speeds.items():
            before = getattr(self, name)
            setattr(self, name, 1 / (0.9 / before + 0.1 / speed) if before and speed else speed)

    @property
    def speeds(self) -> dict[str, float]:
        """What is processed in a second, and how many; of images where there are any. And `mfu`,
        where it is known."""
        images = {} if self.images_per_second is None else {"images": self.images_per_second}
        mfu = {} if self.mfu is None else {"mfu": self.mfu}
        return images | {"tokens": self.tokens_per_second} | mfu

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: the last step is done, or nothing improves."""
        return self.step >= self.steps or self.reason == STOPPED_EARLY

    @property
    def idle(self) -> bool:
        """Whether not one step was done."""
        return self.step == (self.resumed_from or 0)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time that its block takes to one of `seconds`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - start

    def add_best(self, checkpoints: Path) -> None:
        """Takes the best step and its validation loss from the checkpoints that are there."""
        best = rundir.best(checkpoints)
        if best is not None:
            self.best_step = best
            self.best_valid_loss = rundir.valid_loss(checkpoints / str(best))


def stopped_before_training(checkpoints: Path, steps: int, reason: str, seconds: float) -> Outcome:
    """The outcome of a call that was stopped before training began.

    Args:
        checkpoints: the run's folder of them; what is there stays as it is.
        steps: of the whole run.
        reason: why it was stopped.
        seconds: how long the start took until then.
    """
    newest = max(rundir.steps(checkpoints), default=None)
    outcome = Outcome(reason, newest or 0, steps, resumed_from=newest, checkpoint=newest)
    outcome.seconds["start"] = seconds
    outcome.add_best(checkpoints)
    return outcome
