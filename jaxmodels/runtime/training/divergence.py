"""What to do when training diverges: the advice, and going back past the data that led to it."""

import shlex
from pathlib import Path

from jaxmodels.recipe import Recipe
from jaxmodels.runtime.finite import NotFinite
from jaxmodels.runtime.runs.rundir import steps

MOST = 2
"""Rollbacks to one checkpoint; when it diverges from there once more, going back does not help."""


class Rollbacks:
    """Says how much data to leave out after a rollback.

    A call that is killed and started again rolls back to the same checkpoints and leaves out the
    same data: it depends on nothing but the steps at which training diverged.

    Args:
        run: the run directory.
        recipe: of the run; its `on_divergence` may forbid rolling back.
    """

    def __init__(self, run: Path, recipe: Recipe):
        self.run, self.recipe = run, recipe
        self._left_out: dict[int, list[int]] = {}

    def refuse(self, problem: NotFinite) -> None:
        """Raises the problem, with what to do, unless the recipe asks for rolling back."""
        problem.where, problem.fix = str(self.run), _advice(self.run, self.recipe)
        if self.recipe.on_divergence == "stop":
            raise problem

    def after(self, problem: NotFinite, step: int) -> int:
        """How many steps' data to leave out, counted from that of the checkpoint `step` on.

        Raises:
            NotFinite: going back to this checkpoint did not help.
        """
        left_out = self._left_out.setdefault(step, [])
        if len(left_out) == MOST:
            problem.why = f"training diverged again after {MOST} rollbacks to step {step}"
            raise problem
        left_out.append(problem.step - step)
        return sum(left_out)


def _advice(run: Path, recipe: Recipe) -> str:
    """Commands that may help, the last of them not if it was followed already."""
    again = f"jaxmodels train --out {shlex.quote(str(run))}"
    kept = steps(run / "checkpoints")
    begin = f"go on from checkpoint {kept[-1]}" if kept else "there is no checkpoint: begin again"
    optim = recipe.optim
    lines = [
        f"{begin} with a lower learning rate (--find-lr, with another --out, looks for one):",
        f"{again} --optim.peak-lr {optim.peak_lr / 3:.2g}",
        "or with gradients clipped more:",
        f"{again} --optim.clip {optim.clip / 4 if optim.clip else 1:.2g}",
    ]
    if recipe.on_divergence == "stop":
        lines += ["or without the data that led to it:", f"{again} --on-divergence rollback"]
    return "\n".join(lines)
