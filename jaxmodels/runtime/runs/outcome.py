"""How a call of `train` ended. Does not import JAX."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jaxmodels.runtime.runs import rundir

STOPPED_EARLY = "stopped early"
"""The reason of a run that ended before its last step because the loss no longer improved."""


@dataclass
class Outcome:
    """How a call of `train` ended; written to summary.json."""

    reason: str = "done"
    step: int = 0
    steps: int = 0
    resumed_from: int | None = None
    loss: float | None = None
    valid_loss: float | None = None
    valid_loss_by_source: dict[str, float] = field(default_factory=dict)
    """Of a mixture: the last validation loss of each source."""
    best_step: int | None = None
    best_valid_loss: float | None = None
    checkpoint: int | None = None
    tokens_per_second: float = 0.0
    images_per_second: float | None = None
    """None if batches have no images."""
    mfu: float | None = None
    """Model FLOPs utilisation: the model's operations (without remat) a second, over the bfloat16
    peak of all devices; smoothed. None where the peak is unknown, as on a CPU."""
    reserve: float = 0.0
    """Seconds of the granted hours that were reserved for the last save."""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("start", "train", "data", "eval", "save"), 0.0)
    )

    step_seconds: float = 0.0
    """Duration of a step after the first, smoothed."""

    @property
    def goodput(self) -> float | None:
        """The share of this call's time spent in training steps; None before any time has passed.

        The rest is the start (with compilation), waiting for data, evaluations and saves.
        """
        total = sum(self.seconds.values())
        return self.seconds["train"] / total if total else None

    def smooth(self, speeds: dict[str, float], seconds: float) -> None:
        """Updates the running averages by a step's speeds (tokens_per_second, mfu) and seconds.

        Speeds are averaged by their reciprocals: an arithmetic mean would favour fast steps, and
        contradict the time that a run takes.
        """
        before = self.step_seconds
        self.step_seconds = 0.9 * before + 0.1 * seconds if before else seconds
        for name, speed in speeds.items():
            before = getattr(self, name)
            setattr(self, name, 1 / (0.9 / before + 0.1 / speed) if before and speed else speed)

    @property
    def speeds(self) -> dict[str, float]:
        """Unit → number a second: tokens, and images if any; and `mfu`, where it is known."""
        images = {} if self.images_per_second is None else {"images": self.images_per_second}
        mfu = {} if self.mfu is None else {"mfu": self.mfu}
        return images | {"tokens": self.tokens_per_second} | mfu

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: the last step is done, or the run was stopped early."""
        return self.step >= self.steps or self.reason == STOPPED_EARLY

    @property
    def idle(self) -> bool:
        """Whether no step was done."""
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
        """Sets the best step and its validation loss from the checkpoints on disk."""
        best = rundir.best(checkpoints)
        if best is not None:
            self.best_step = best
            self.best_valid_loss = rundir.valid_loss(checkpoints / str(best))


def stopped_before_training(checkpoints: Path, steps: int, reason: str, seconds: float) -> Outcome:
    """The outcome of a call that was stopped before training began.

    Args:
        checkpoints: the run's folder of checkpoints.
        steps: of the run.
        reason: why it was stopped.
        seconds: duration of the start until then.
    """
    newest = max(rundir.steps(checkpoints), default=None)
    outcome = Outcome(reason, newest or 0, steps, resumed_from=newest, checkpoint=newest)
    outcome.seconds["start"] = seconds
    outcome.add_best(checkpoints)
    return outcome
