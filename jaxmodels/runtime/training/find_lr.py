"""The learning-rate range test (Smith 2017, arXiv:1506.01186), as seed 002 offers it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmodels.architecture import Architecture
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import State, training

_FEWEST = 3  # losses that a slope is taken of


def find_lr(
    package: Architecture,
    config: Any,
    recipe: Recipe,
    batches: Any,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    begin: Callable[[State], State] = lambda state: state,
) -> dict[str, Any]:
    """Trains `steps` steps while the rate grows from `low` to `high` by equal factors.

    Uses the recipe's own optimiser, so that the rate found is one for it, and begins where the run
    will: `begin` makes of a fresh state what it begins with. Stops once the loss is four times its
    best, or no number.

    Returns:
        `rates`, `losses` (smoothed, nats) and `suggestion`: where the loss falls fastest.

    Raises:
        Problem: (verification failed) the loss is no finite number before a rate was of any use.
    """

    def rate(step: Any) -> Any:
        return low * (high / low) ** (step / (steps - 1))

    mesh = make_mesh(recipe.mesh)
    _, fresh, _, step = training(package, config, recipe, mesh, rate)
    state, smooth = begin(fresh()), 0.0
    rates: list[float] = []
    losses: list[float] = []
    for index in range(steps):
        state, told = step(state, put_batch(next(batches), mesh))
        loss = told.read()["loss"]
        if not np.isfinite(loss) or (losses and loss > 4 * min(losses)):
            break
        smooth = 0.9 * smooth + 0.1 * loss
        rates.append(float(rate(index)))
        losses.append(smooth / (1 - 0.9 ** (index + 1)))
    if len(losses) < _FEWEST:
        raise Problem(
            "the learning rates cannot be compared",
            why=f"at the smallest, {low:g}, the loss is no finite number or grows at once"
            f" (after {len(losses)} steps)",
            fix="look at the data and, with --init, at the checkpoint: jaxmodels inspect PATH",
            exit_code=UNVERIFIED,
        )
    return {"rates": rates, "losses": losses, "suggestion": _steepest(rates, losses)}


def _steepest(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest per factor of the rate."""
    slopes = np.gradient(losses, np.log(rates))
    return rates[int(np.argmin(slopes))]


def plot(result: dict[str, Any]) -> Any:
    """matplotlib's figure of the loss against the learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(result["rates"], result["losses"])
    label = f"falls fastest: {result['suggestion']:.1e}"
    axes.axvline(result["suggestion"], color="tab:red", linestyle="--", label=label)
    axes.set(xlabel="learning rate", ylabel="loss (nats, smoothed)", title="Range test")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
