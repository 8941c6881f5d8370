"""Validation loss after a fixed budget of steps: `jaxmodels bench quality`.

The loop of `jaxmodels train` with a preset's own recipe, on the embedded text, or on drawn scenes
for models of images and captions; only the number of steps is changed. The same seed gives the same
loss, so a difference between commits comes from what is computed.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import jaxmodels
from benchmarks.harness import RESULTS, Run, save
from data_pipelines.cores import cores
from data_pipelines.pipelines import open_data
from jaxmodels.cli import parse, say
from jaxmodels.errors import within
from jaxmodels.runtime.batches import sees
from jaxmodels.runtime.training.train import Job, train

_TRAINED = tuple(arch for arch in jaxmodels.ARCHS if arch != "dinov2")  # it has no loss
RUNS = tuple(("--preset", f"{arch}:tiny") for arch in _TRAINED)
QUICK = tuple(("--preset", f"{arch}:tiny", "--steps", "20") for arch in _TRAINED)


@dataclass(frozen=True)
class Quality:
    """Train a preset for a fixed number of steps and measure its validation loss."""

    preset: str = "charlm:tiny"
    """ARCH:PRESET."""
    steps: int = 1000
    """Optimiser steps; warm-up and decay of the learning rate end with them."""
    out: Path = RESULTS
    """Folder whose quality.jsonl the results are added to."""

    def __post_init__(self) -> None:
        within("--steps", self.steps, 2)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its record to the results and prints it."""
    options = parse(Quality, argv, "bench quality")
    arch, name, config = jaxmodels.preset(options.preset)
    recipe = replace(
        jaxmodels.learner(arch).RECIPES[name],
        data="shapes" if sees(config) else "pydoc",
        steps=options.steps,
        eval_every=options.steps,
        save_every=options.steps,
        sample_every=0,
    )
    settings = {"batch": recipe.batch, "steps": recipe.steps, "threads": cores(), "seed": 0}
    run = Run("quality", settings | {"data": recipe.data, "dtype": recipe.dtype})
    say(f"{options.preset}: {recipe.steps} steps of {recipe.batch} on {recipe.data}")
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        data = open_data(
            recipe.data,
            folder=Path(folder) / "data",
            context=config.context,
            batch=recipe.batch,
            seed=recipe.seed,
            valid_fraction=recipe.valid_fraction,
            min_freq=recipe.min_freq,
            tokenizer=recipe.tokenizer,
        )
        sizes = {name: data.vocab_needed for name in ("vocab", "tokens") if hasattr(config, name)}
        config, began = replace(config, **sizes), time.monotonic()
        valid = data.valid(recipe.eval_batches)
        job = Job(jaxmodels.arch(arch), config, recipe, data.train(), valid, Path(folder) / "run")
        out = train(job)
    loss = out.valid_loss
    assert loss is not None
    bits = {} if sees(config) else {"bits_per_token": loss / log(2)}
    record = run.record(
        f"{options.preset}, {recipe.data}",
        "jaxmodels",
        "nats",
        loss,
        train_loss=out.loss,
        seconds=round(time.monotonic() - began, 1),
        **bits,
    )
    say(f"added to {save([record], options.out)}")
    print(
        f"{record['case']}: validation loss {loss:.4f} after {recipe.steps} steps "
        f"and {record['seconds']:.0f} s",
        flush=True,
    )
    return [record]
