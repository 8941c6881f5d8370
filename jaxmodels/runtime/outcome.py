"""How a call of `train` ended, without starting JAX."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jaxmodels.runtime import rundir


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
    reserve: float = 0.0
    """Seconds of the granted hours that were kept for the save at the end."""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("start", "train", "data", "eval", "save"), 0.0)
    )

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


def not_begun(checkpoints: Path, steps: int, reason: str, seconds: float) -> Outcome:
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
