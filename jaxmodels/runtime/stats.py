"""Statistics of every parameter and its gradient during training (as in bwetaf's trainer).

They are one branch (`lax.cond`) of the train step, traced only when `--stats-every` is not 0: a
second compiled step would double the compilation and could round differently. All numbers leave the
device as one array.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodels.runtime.metrics import JsonLines
from jaxmodels.runtime.paths import Arrays

FILE = "stats.jsonl"
NAMES = (
    "grad_norm",
    "grad_mean_abs",
    "grad_vanishing",  # share of |g| < 1e-6
    "grad_exploding",  # share of |g| > 100
    "mean",
    "std",
    "min",
    "max",
    "mean_abs",
    "norm",
    "update_ratio",  # norm of the step's update over the norm of the parameter
)


def due(step: Any, every: int) -> Any:
    """Whether a step (counted from 1; an int or an array) is measured."""
    return step % every == 0


def measure(params: Arrays, grads: Arrays, updates: Arrays) -> jax.Array:
    """float32 [parameters, len(NAMES)], rows sorted by path.

    Args:
        params: before the step.
        grads: before clipping.
        updates: what the optimiser adds to the parameters.
    """
    return jnp.stack([_row(params[path], grads[path], updates[path]) for path in sorted(params)])


def zeros(params: Arrays) -> jax.Array:
    """Zeros in place of `measure`, for steps that are not measured."""
    return jnp.zeros((len(params), len(NAMES)), jnp.float32)


def _row(p: jax.Array, g: jax.Array, update: jax.Array) -> jax.Array:
    size, norm = jnp.abs(g), _norm(p)
    numbers = (
        *(_norm(g), size.mean(), (size < 1e-6).mean(), (size > 100).mean()),
        *(p.mean(), p.std(), p.min(), p.max(), jnp.abs(p).mean(), norm),
        _norm(update) / jnp.maximum(norm, 1e-12),
    )
    return jnp.stack([number.astype(jnp.float32) for number in numbers])


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x).sum())


class StatsLog:
    """stats.jsonl: a line for each measured step, {"step", "params": {path: {name: number}}}.

    Each path also has `size`, its number of elements; NaN and infinities are null.

    Args:
        run: the run directory.
        step: the step that the run continues from; later lines are dropped.
        every: steps between measurements; 0: no measurements and no file.
        sizes: path → number of elements.
    """

    def __init__(self, run: Path, step: int, every: int, sizes: dict[str, int]):
        self.every, self.sizes = every, sizes
        path = run / FILE
        self._lines = JsonLines(path, step) if every or path.exists() else None

    def write(self, step: int, numbers: jax.Array | None) -> None:
        """Appends the result of `measure` for a step; ignores steps that are not measured."""
        if self._lines is None or numbers is None or not due(step, self.every):
            return
        rows = {
            path: {
                "size": self.sizes[path],
                **{n: _rounded(x) for n, x in zip(NAMES, row, strict=True)},
            }
            for path, row in zip(sorted(self.sizes), np.asarray(numbers), strict=True)
        }
        self._lines.write({"step": step, "params": rows})

    def flush(self) -> None:
        """Flushes to disk."""
        if self._lines is not None:
            self._lines.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if self._lines is not None:
            self._lines.close()


def _rounded(number: np.floating) -> float | None:
    """Six digits: a float32 has no more."""
    return float(f"{number:.6g}") if math.isfinite(number) else None
