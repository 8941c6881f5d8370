"""How `train --help` and `plan --help` are ordered: what is needed first, then groups."""

from typing import Any

import jaxmodels
from jaxmodels import option_help

GROUPS = {
    "start here": "topology out data tokenizer batch steps lr max-hours init lora",
    "data": "vocab-documents min-freq new-words segments valid-fraction seed",
    "optimiser": "optim.name optim.b? optim.eps optim.momentum optim.weight-decay optim.no-decay "
    "optim.clip optim.lr-scale optim.muon-* accum ema-decay on-divergence init-optimizer",
    "schedule": "optim.schedule optim.schedule-steps optim.warmup optim.decay optim.*-lr find-lr",
    "output": "save-every save-minutes keep jump eval-every eval-batches patience sample-every "
    "prompt stats-every report-to profile resume config print-config json",
    "devices": "dtype remat slices mesh xla",
    "cluster": "coordinator processes process join-timeout heartbeat",
    "model": "model.*",
}
"""Title → patterns of its flags, in order."""

SHORT = {"optim.peak-lr": "lr"}
"""Flag → the name by which it is shown; both are accepted."""


def print_help(verb: str, options: Any, spec: str) -> None:
    """Prints the page.

    Args:
        verb: train or plan.
        options: its options, with the preset's values as defaults.
        spec: ARCH:PRESET; if it is "", presets are shown instead of defaults and the model's sizes.
    """
    usage = f"jaxmodels {verb} {spec or 'ARCH:PRESET'}"
    if spec:
        print(option_help.page(usage, type(options), options, GROUPS, SHORT))
        return
    lines = ["presets (`jaxmodels list` shows their sizes):"]
    for arch in jaxmodels.ARCHS:
        if recipes := getattr(jaxmodels.arch(arch), "RECIPES", None):
            lines.append(f"  {arch:<15}{', '.join(recipes)}")
    lines.append(f"`{usage} --help` shows their defaults.")
    after = "\n".join(lines)
    print(option_help.page(usage, type(options), options, GROUPS, SHORT, after, False, "model"))
