"""AdamW's state in nanoGPT's checkpoints, where torch numbers parameters instead of naming them.

Source: karpathy/nanoGPT, `model.py`: the order of the parameters in the optimiser.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.moments import Moments, count_of
from bridge.core.tensors import Tensor
from jaxmodels.errors import MISMATCH, Problem

HEAD = "lm_head.weight"
# nanoGPT's defaults, if the origin has none.
SETTINGS = {"lr": 6e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def _order(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Parameters in the two groups of nanoGPT's optimiser: matrices, which decay, then vectors."""
    names = [name for name in shapes if not name.endswith(HEAD)]
    return [[n for n in names if (len(shapes[n]) < 2) == vectors] for vectors in (False, True)]


def _old_order(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """The order until June 2023: sorted by name; embeddings did not decay."""
    names = sorted(name for name in shapes if not name.endswith(HEAD))
    decays = {
        n: len(shapes[n]) == 2 and not n.endswith(("wte.weight", "wpe.weight")) for n in names
    }
    return [[name for name in names if decays[name] == decay] for decay in (True, False)]


def read_moments(path: Path, tensors: dict[str, Tensor], saved: Any) -> Moments | None:
    """AdamW's state; torch numbers the parameters instead of naming them."""
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        return None
    groups, state = saved.get("param_groups"), saved["state"]
    if not state or not isinstance(groups, list):
        return None
    shapes = {name: t.shape for name, t in tensors.items() if not _is_buffer(name)}
    try:
        entries = _entries(groups, state, shapes)
        mu = {n: replace(entry["exp_avg"], name=n) for n, entry in entries.items()}
        nu = {n: replace(entry["exp_avg_sq"], name=n) for n, entry in entries.items()}
        counts = {count_of(entry["step"], str(path)) for entry in entries.values()}
        (count,) = counts
        first = groups[0]
        values = (first["lr"], *first["betas"], first["eps"], first["weight_decay"])
        settings = {k: float(v) for k, v in zip(SETTINGS, values, strict=True)}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Problem(
            "the optimiser's state is not that of AdamW over these parameters",
            where=str(path),
            why=f"{len(state)} entries for {len(shapes)} tensors"
            + (f"; {error}" if isinstance(error, _Misfit) else f" ({type(error).__name__})"),
            fix="convert without --optimizer, or give the checkpoint that training wrote",
            exit_code=MISMATCH,
        ) from error
    return Moments(count, mu, nu, settings)


class _Misfit(LookupError):
    """A parameter's moments do not have its shape."""


def _entries(
    groups: list[Any], state: dict[Any, Any], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Name of a parameter → its state, in the one order that fits the groups and all shapes.

    Raises:
        _Misfit: no order fits.
        LookupError, TypeError, AttributeError: the state has another structure.
    """
    numbers, misfits = [group["params"] for group in groups], []
    for order in (_order(shapes), _old_order(shapes)):
        if [*map(len, order)] != [*map(len, numbers)]:
            continue
        named = dict(zip(chain(*order), chain(*numbers), strict=True))
        found = {name: state[number]["exp_avg"].shape for name, number in named.items()}
        wrong = [name for name, shape in found.items() if shape != shapes[name]]
        if not wrong:
            return {name: state[number] for name, number in named.items()}
        message = f"the moments of {wrong[0]} are {found[wrong[0]]}, not {shapes[wrong[0]]}"
        misfits.append((len(wrong), message))
    raise _Misfit(min(misfits)[1] if misfits else "their number in each group is another")


def _is_buffer(name: str) -> bool:
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def state_dict(tensors: dict[str, Tensor], moments: Moments | None) -> dict[str, Any]:
    """`state_dict()` of nanoGPT's AdamW: matrices decay, vectors do not."""
    import torch

    order = [*chain(*_order({name: tensor.shape for name, tensor in tensors.items()}))]
    settings = {**SETTINGS, **(moments.settings if moments else {})}
    groups: list[list[Any]] = [[], []]
    for name in order:
        groups[len(tensors[name].shape) < 2].append(torch.nn.Parameter(torch.empty(0)))
    decay = settings["weight_decay"]
    saved = torch.optim.AdamW(
        [
            {"params": held, "weight_decay": by}
            for held, by in zip(groups, (decay, 0.0), strict=True)
        ],
        lr=settings["lr"],
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
    ).state_dict()
    if moments is not None:
        saved["state"] = {
            number: {
                "step": scalar(moments.count),
                "exp_avg": moments.mu[name],
                "exp_avg_sq": moments.nu[name],
            }
            for number, name in enumerate(order)
        }
    return saved


def scalar(number: float) -> Tensor:
    """A float32 without axes."""
    array = np.asarray(number, np.float32)
    return Tensor("", (), array.dtype, lambda: array)
