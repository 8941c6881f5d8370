"""Early stopping: counts evaluations since the validation loss was at its lowest.

A resumed run replays the evaluations in metrics.jsonl, and so ends where an unbroken one would.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite


@dataclass
class Patience:
    """Counts evaluations without a lower validation loss."""

    most: int
    """Evaluations in a row without a lower loss that end the run (`Recipe.patience`); 0: never."""
    best: float | None = None
    """The lowest validation loss so far."""
    since: int = 0
    """Evaluations since then."""

    def see(self, loss: float | None) -> None:
        """Counts an evaluation; a loss that is not finite (null in the log) is never lower."""
        loss = inf if loss is None or not isfinite(loss) else loss
        if loss < (inf if self.best is None else self.best):
            self.best, self.since = loss, 0
        else:
            self.since += 1

    def replay(self, losses: Iterable[float | None]) -> "Patience":
        """Counts earlier evaluations."""
        for loss in losses:
            self.see(loss)
        return self

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return 0 < self.most <= self.since
