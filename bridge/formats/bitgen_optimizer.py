"""AdamW's state in BitGen Stage 1's checkpoints, where torch numbers parameters instead of naming
them.

Source: euhidaman/BitGen ( `train_stage1_vision_language.py`).
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.moments import Moments, count_of
from bridge.core.table import path_of
from bridge.core.tensors import Tensor
from bridge.core.twins import to_torch
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.paths import pattern

_BUFFERS = re.compile(
    r".*\.(?:(?:image|text)_queue|queue_ptr|(?:weight|input)_scale"
    r"|memory_(?:read_count|write_count|quality|age))"
)
# The trainer's own.
SETTINGS = {"lr": 2e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.02}


def _place(name: str) -> str:
    """Our path of one of the trainer's tensors; the name itself if there is none."""
    from jaxmodels.bitgen_stage1.layout import UPSTREAM

    found = path_of(UPSTREAM, name)
    return found[0] if found else name


def trained(tensors: Iterable[str]) -> dict[str, bool]:
    """Name of a parameter, in the order of the trainer's optimiser → whether it gets a gradient.

    torch's AdamW keeps no state for a parameter that never had one.
    """
    from jaxmodels.bitgen_stage1.config import DEAD

    places = {name: _place(name) for name in tensors if not _BUFFERS.fullmatch(name)}
    return {
        name: not any(pattern(dead).fullmatch(path) for dead in DEAD)
        for name, path in places.items()
    }


def read_moments(path: Path, tensors: dict[str, Tensor], saved: Any) -> Moments | None:
    """AdamW's state; torch numbers the parameters instead of naming them."""
    if not isinstance(saved, dict) or not saved.get("state"):
        return None
    order = trained(tensors)
    try:
        (group,) = saved["param_groups"]
        numbers, state = dict(zip(order, group["params"], strict=True)), saved["state"]
        entries = {n: state[i] for n, i in numbers.items() if order[n] or i in state}
        mu = {n: replace(entry["exp_avg"], name=n) for n, entry in entries.items()}
        nu = {n: replace(entry["exp_avg_sq"], name=n) for n, entry in entries.items()}
        (count,) = {count_of(entry["step"], str(path)) for entry in entries.values()}
        lr = group.get("initial_lr", group["lr"])
        values = (lr, *group["betas"], group["eps"], group["weight_decay"])
        settings = {k: float(v) for k, v in zip(SETTINGS, values, strict=True)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Problem(
            "the optimiser's state is not that of AdamW over these parameters",
            where=str(path),
            why=f"{len(saved['state'])} entries for {sum(order.values())} trained parameters "
            f"({type(error).__name__})",
            fix="convert without --optimizer, or give the checkpoint that training wrote",
            exit_code=MISMATCH,
        ) from error
    still = {n: _zeros(tensors[n]) for n in order if n not in entries}
    return Moments(count, mu | still, nu | still, settings)


def _zeros(tensor: Tensor) -> Tensor:
    return replace(tensor, read=lambda: np.zeros(tensor.shape, tensor.dtype))


def state_dicts(
    tensors: dict[str, Tensor], moments: Moments | None, config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`state_dict()` of the trainer's AdamW, and of its schedule over optimiser steps."""
    import torch

    order = trained(tensors)
    settings = {**SETTINGS, **(moments.settings if moments else {})}
    count = moments.count if moments else 0
    warmup = config.get("warmup_steps", 1000)
    now = settings["lr"] * min(1.0, count / max(warmup, 1))
    optimiser = torch.optim.AdamW(
        [torch.nn.Parameter(torch.empty(0)) for _ in order],
        lr=now,
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    saved = optimiser.state_dict()
    saved["param_groups"][0]["initial_lr"] = settings["lr"]
    if moments is not None:
        saved["state"] = {
            number: {
                "step": torch.tensor(float(count)),
                "exp_avg": to_torch(moments.mu[name]),
                "exp_avg_sq": to_torch(moments.nu[name]),
            }
            for number, (name, alive) in enumerate(order.items())
            if alive
        }
    scheduler = {
        "base_lrs": [settings["lr"]],
        "last_epoch": count,
        "_step_count": count + 1,
        "_get_lr_called_within_step": False,
        "_last_lr": [now],
        "lr_lambdas": [None],
    }
    return saved, scheduler
