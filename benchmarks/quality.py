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
from jaxmodels.errors import CORRUPT, Problem, within
from jaxmodels.recipe import Recipe
from jaxmodels.registry import OURS
from jaxmodels.runtime.batches import takes_text
from jaxmodels.runtime.training.train import Job, train

_TRAINED = tuple(arch for arch in OURS if arch != "dinov2")  # it has no loss
RUNS = tuple(("--preset", f"{arch}:tiny") for arch in _TRAINED)
QUICK = tuple(("--preset", f"{arch}:tiny", "--steps", "20") for arch in _TRAINED)


@dataclass(frozen=True)
class Quality:
    """Train a preset for a fixed number of steps and measure its validation loss."""

    preset: str = ""
    """ARCH:PRESET; by default charlm:tiny, with --text wikigpt:shakespeare-cpu."""
    steps: int | None = None
    """Optimiser steps; warm-up and decay of the learning rate end with them. By default 1,000, with
    --text as in the preset's recipe."""
    text: Path | None = None
    """A text to train on in place of the embedded one. With tiny Shakespeare, input.txt of
    nanoGPT's data/shakespeare_char, this is the training whose losses nanoGPT's README gives."""
    out: Path = RESULTS
    """Folder whose quality.jsonl the results are added to."""

    def __post_init__(self) -> None:
        within("--steps", self.steps, 2)
        if self.text is not None and not self.text.is_file():
            raise Problem("there is no such text", where=str(self.text), exit_code=CORRUPT)


def _recipe(arch: str, name: str, options: Quality) -> Recipe:
    """The preset's recipe on the data, with one evaluation at its end."""
    package = jaxmodels.learner(arch)
    recipe = package.RECIPES[name]
    steps = options.steps or (recipe.steps if options.text else 1000)
    embedded = "pydoc" if takes_text(package.PRESETS[name]) else "shapes"
    return replace(
        recipe,
        data=f"text:{options.text}" if options.text else embedded,
        steps=steps,
        eval_every=steps,
        save_every=steps,
        sample_every=0,
    )


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its record to the results and prints it."""
    options = parse(Quality, argv, "bench quality")
    preset = options.preset or ("wikigpt:shakespeare-cpu" if options.text else "charlm:tiny")
    arch, name, config = jaxmodels.preset(preset)
    recipe = _recipe(arch, name, options)
    settings = {"batch": recipe.batch, "steps": recipe.steps, "threads": cores(), "seed": 0}
    # The name alone: where the file is on this machine is nobody else's business.
    source = options.text.name if options.text else recipe.data
    run = Run("quality", settings | {"data": source, "dtype": recipe.dtype})
    say(f"{preset}: {recipe.steps} steps of {recipe.batch} on {source}")
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
    bits = {"bits_per_token": loss / log(2)} if takes_text(config) else {}
    record = run.record(
        f"{preset}, {source}",
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
