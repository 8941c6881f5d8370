"""AdamW's state in a form that no library owns, so that it can go where the parameters go.

Moments are kept under our paths with the same tables as the parameters. torch numbers an
optimiser's parameters in the module's order, which `table.in_order` gives from the rows of
UPSTREAM.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.core.table import Pair, Shape, listing
from bridge.core.tensors import Tensor
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

# As `jaxmodels.recipe.Optim` calls them, but for `lr`.
SETTINGS = ("lr", "b1", "b2", "eps", "weight_decay")


@dataclass(frozen=True)
class Moments:
    """Running means of gradients and of their squares, neither corrected for its start at zero."""

    count: int
    """Updates so far."""
    mu: dict[str, Tensor]
    """Name of a parameter → mean of its gradient, in the parameter's layout."""
    nu: dict[str, Tensor]
    """Name of a parameter → mean of its gradient's square."""
    settings: dict[str, float] = field(default_factory=dict)
    """lr, b1, b2, eps, weight_decay: those of them that the file says."""

    def bound(self, pairs: list[Pair], shapes: Mapping[str, Shape], where: str) -> "Moments":
        """The same under our paths and in our layout.

        Args:
            pairs: the map between our paths and the names here.
            shapes: our path → shape of every parameter.
            where: the file, for the message.

        Raises:
            Problem: (mismatch) a parameter has no moments here, or moments of another shape.
        """
        complaints = []
        names = {pair.theirs for pair in pairs}
        for label, held in (("mean", self.mu), ("mean square", self.nu)):
            complaints += [f"{name}: a {label} of nothing" for name in held if name not in names]
            for pair in pairs:
                tensor, wanted = held.get(pair.theirs), pair.their_shape(shapes[pair.ours])
                if tensor is None or tensor.shape != wanted:
                    is_there = "no" if tensor is None else f"{tensor.shape}, not {wanted}, as"
                    complaints.append(f"{pair.theirs}: {is_there} {label}")
        if complaints:
            raise Problem(
                "the optimiser's state belongs to another model",
                where=where,
                why=listing(complaints),
                fix="give the state that was saved with these parameters, or leave it out",
                exit_code=MISMATCH,
            )
        return self.mapped(
            lambda held: {p.ours: p.load(held[p.theirs], shapes[p.ours]) for p in pairs}
        )

    def mapped(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> "Moments":
        """The same with `change` applied to both maps."""
        return Moments(self.count, change(self.mu), change(self.nu), self.settings)


def required(moments: Moments | None, where: Path) -> Moments:
    """The moments, which must be there.

    Raises:
        Problem: (mismatch) they are not.
    """
    if moments is None:
        raise Problem(
            "there is no optimiser state",
            where=str(where),
            why="no moments of AdamW lie with the parameters; runs with muon, sgd, lion, "
            "adafactor or --lora have none",
            fix="give a run directory or the checkpoint that training with AdamW wrote, or leave "
            "it out",
            exit_code=MISMATCH,
        )
    return moments


def count_of(value: Any, where: str) -> int:
    """The number of updates, from a tensor or a plain number.

    Raises:
        Problem: (corrupt) it is no number.
    """
    if isinstance(value, Tensor):
        value = value.read().item() if value.size == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise Problem(
            "the optimiser's state does not say how many updates it saw",
            where=where,
            why=f"it says {str(value)[:80]}",
            fix="fetch or save the file again",
            exit_code=CORRUPT,
        )
    return int(value)
