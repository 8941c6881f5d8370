"""What to do when training diverges: advice, and rolling back past the data that led to it.

A rollback skips data rather than lowering the rate: this depends on the checkpoint and the diverged
step alone, so a call that is killed and started again does the same.
"""

import shlex
from pathlib import Path

from jaxmodels.recipe import Recipe
from jaxmodels.runtime.finite import NotFinite
from jaxmodels.runtime.runs.rundir import steps

MAX_ROLLBACKS = 2
"""Rollbacks to one checkpoint, before training gives up."""


class Rollbacks:
    """Counts rollbacks and the data to skip after each.

    Args:
        run: the run directory.
        recipe: the run's; its `on_divergence` may forbid rolling back.
    """

    def __init__(self, run: Path, recipe: Recipe):
        self.run, self.recipe = run, recipe
        self._left_out: dict[int, list[int]] = {}

    def refuse(self, problem: NotFinite) -> None:
        """Raises the problem, with advice, unless the recipe asks for rollbacks."""
        problem.where, problem.fix = str(self.run), _advice(self.run, self.recipe)
        if self.recipe.on_divergence == "stop":
            raise problem

    def steps_to_skip(self, problem: NotFinite, step: int) -> int:
        """The number of batches to skip after the checkpoint of `step`.

        Raises:
            NotFinite: rolling back to this checkpoint did not help.
        """
        left_out = self._left_out.setdefault(step, [])
        if len(left_out) == MAX_ROLLBACKS:
            problem.why = f"training diverged again after {MAX_ROLLBACKS} rollbacks to step {step}"
            raise problem
        left_out.append(problem.step - step)
        return sum(left_out)


def _advice(run: Path, recipe: Recipe) -> str:
    """Commands that may help."""
    again = f"jaxmodels train --out {shlex.quote(str(run))}"
    kept = steps(run / "checkpoints")
    begin = (
        f"continue from checkpoint {kept[-1]}" if kept else "there is no checkpoint: start again"
    )
    optim = recipe.optim
    lines = [
        f"{begin} with a lower learning rate (--find-lr, with another --out, suggests one):",
        f"{again} --optim.peak-lr {optim.peak_lr / 3:.2g}",
        "or with gradients clipped more:",
        f"{again} --optim.clip {optim.clip / 4 if optim.clip else 1:.2g}",
    ]
    if recipe.on_divergence == "stop":
        lines += ["or without the data that led to it:", f"{again} --on-divergence rollback"]
    return "\n".join(lines)
