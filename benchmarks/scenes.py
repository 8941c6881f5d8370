"""What bitgen learns of drawn scenes in minutes: `jaxmodels bench scenes`.

Trains `bitgen:tiny` with its own recipe, as `jaxmodels train bitgen:tiny` does, and measures what
it can do with the 256 scenes held out, whose combinations of things it never saw: find each other's
image and caption, tell a caption that is nearly right, write what there is to see, and remember
captions that were written into its memory.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxmodels
from benchmarks.harness import RESULTS, Run, check_positive, save
from data_pipelines.captions.shapes import COLOURS, SHAPES
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.errors import INTERNAL, USAGE, Problem

RUNS = ((),)
QUICK = (("--steps", "20"),)

REMEMBERED = 32  # captions written into the memory at once


@dataclass(frozen=True)
class Scenes:
    """Train bitgen:tiny on drawn scenes, and measure what it learned."""

    steps: int | None = None
    """Optimiser steps; by default the recipe's."""
    run: Path | None = None
    """Measure this run of a bitgen instead of training one; nothing is recorded."""
    out: Path = RESULTS
    """Folder whose scenes.jsonl the results are added to."""

    def __post_init__(self) -> None:
        check_positive(self, "steps")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them."""
    options = parse(Scenes, argv, "bench scenes")
    if options.run is not None:
        return _told(measured(options.run), [])
    steps = (
        jaxmodels.arch("bitgen").RECIPES["tiny"].steps if options.steps is None else options.steps
    )
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        run = Run("scenes", {"threads": cores(), "steps": steps})
        path, seconds = Path(folder) / "run", _train(Path(folder) / "run", steps)
        learned = measured(path)
    records = [
        run.record(f"bitgen:tiny, {name}", "jaxmodels", "share", value, train_seconds=seconds)
        for name, value in learned.items()
    ]
    say(f"added to {save(records, options.out)}")
    return _told(learned | {"seconds of training, start and all": seconds}, records)


def _told(values: dict[str, float], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for name, value in values.items():
        print(f"{name:<40} {value:.3f}", flush=True)
    return records


def _train(path: Path, steps: int) -> float:
    """Trains with the command; the seconds that it took altogether.

    Raises:
        Problem: it ended without a model, with its exit code; the command has told why.
    """
    words = ["train", "bitgen:tiny", "--out", str(path), "--steps", str(steps)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jaxmodels", *words], stdout=sys.stderr, check=False
    )
    if done.returncode:
        raise Problem(
            "training ended early",
            where=f"jaxmodels {' '.join(words)}",
            fix="see what it said above",
            exit_code=done.returncode if done.returncode > 0 else INTERNAL,
        )
    return round(time.monotonic() - began, 1)


def measured(path: Path, spec: str = "shapes", **options: Any) -> dict[str, float]:
    """Shares of the held-out scenes with which a run's model does right.

    Args:
        path: the run.
        spec: the scenes.
        options: of `open_data`.
    """
    from data_pipelines.pipelines import open_data
    from jaxmodels.commands.open import open_model

    model, tokenizer = open_model(path, None, ())
    if jaxmodels.package_of(model) is not jaxmodels.arch("bitgen"):
        raise Problem(
            "only a bitgen is measured on scenes",
            where=str(path),
            fix="give the run of a bitgen with --run, or leave it out",
            exit_code=USAGE,
        )
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        data = open_data(
            spec,
            folder=Path(folder) / "data",
            context=model.config.context,
            batch=REMEMBERED,
            tokenizer=tokenizer,
            side=model.config.image_size,
            **options,
        )
        batches = list(data.valid())
    return {
        **_found(model, batches),
        **_written(model, tokenizer, batches),
        "captions recalled by their images": _recalled(model, batches[0]),
    }


def _found(model: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """R@1 among all pairs, and the accuracy of matching, with the likeliest negative of 32."""
    from jaxmodels.runtime.evaluate import evaluate, loss_function
    from jaxmodels.runtime.paths import split
    from jaxmodels.runtime.retrieval import Encoder

    encoder = Encoder(model)
    similar = encoder.texts(batches) @ encoder.images(b["images"] for b in batches).T
    own = np.arange(len(similar))
    graphdef, params, rest = split(model)
    function = loss_function(jaxmodels.package_of(model), graphdef)
    told = evaluate(function, params, rest, batches)
    assert told is not None
    return {
        "R@1 text to image": float((similar.argmax(axis=1) == own).mean()),
        "R@1 image to text": float((similar.argmax(axis=0) == own).mean()),
        "image-text matching right": float(told["itm_acc"]),
    }


def _written(model: Any, tokenizer: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """How often a greedy caption names a thing that is there, and both of them."""
    from jaxmodels.runtime.training.samples import caption

    hits = []
    for batch in batches:
        for row, mask, ids in zip(
            batch["tokens"], batch["mask"], caption(model, tokenizer, batch["images"]), strict=True
        ):
            there = things(tokenizer.decode(row[mask == 1]))
            hits.append(len(there & things(tokenizer.decode(ids))) / len(there))
    return {
        "things named with colour and shape": float(np.mean(hits)),
        "captions that name both things": float(np.mean(np.equal(hits, 1))),
    }


def things(text: str) -> set[tuple[str, str]]:
    """The (colour, shape) that a caption names, wherever they stand in it."""
    return {(a, b) for a, b in pairwise(text.split()) if a in COLOURS and b in SHAPES}


def _recalled(model: Any, batch: dict[str, Any]) -> float:
    """How many of 32 captions, written with their images, the memory gives back by the image."""
    from jaxmodels.bitgen import remember

    tokens, mask = jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"])
    images = jnp.asarray(batch["images"], jnp.float32) / 255
    evidence = remember.write(model, tokens, images, mask)
    found = remember.read(model, images=images, stats=evidence)
    index, _ = remember.nearest(found, remember.codes(model, tokens, mask))
    return float((index == jnp.arange(len(tokens))).mean())
