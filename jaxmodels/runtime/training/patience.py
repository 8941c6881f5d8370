"""Early stopping: how many evaluations it is since the validation loss was at its lowest."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite


@dataclass
class Patience:
    """Counts evaluations without a lower validation loss.

    A resumed run replays those up to the step that it goes on from, and so ends where an unbroken
    one would have ended.
    """

    most: int
    """Evaluations in a row without a lower loss that end it (`Recipe.patience`); 0: none do."""
    best: float | None = None
    """The lowest validation loss so far."""
    since: int = 0
    """Evaluations after it."""

    def see(self, loss: float | None) -> None:
        """Takes note of an evaluation; a loss that is not finite (null in metrics.jsonl) is no
        lower one."""
        loss = inf if loss is None or not isfinite(loss) else loss
        if loss < (inf if self.best is None else self.best):
            self.best, self.since = loss, 0
        else:
            self.since += 1

    def replay(self, losses: Iterable[float | None]) -> "Patience":
        """Takes note of earlier evaluations."""
        for loss in losses:
            self.see(loss)
        return self

    @property
    def over(self) -> bool:
        """Whether to end."""
        return 0 < self.most <= self.since
