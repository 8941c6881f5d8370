"""What bitgen learns from drawn scenes in minutes: `jaxmodels bench scenes`.

Trains `bitgen:tiny` or `bitgen:mini` with its own recipe, as `jaxmodels train` does, and evaluates
it on the 256 held-out scenes, whose combinations of objects are new to it: retrieval of images and
captions, matching against hard negatives, captioning, and recall of captions from its memory.
"""

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

import jaxmodels
from benchmarks.harness import RESULTS, Run, positive, save
from benchmarks.processes import timed
from benchmarks.scenes_memory import ASKED, remembering
from data_pipelines.captions.shapes import COLOURS, SHAPES
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.errors import USAGE, Problem

RUNS = ((),)
QUICK = (("--steps", "20"),)

REMEMBERED = 32  # captions written into the memory at once


@dataclass(frozen=True)
class Scenes:
    """Train a small bitgen on drawn scenes, and evaluate it."""

    preset: Literal["tiny", "mini"] = "tiny"
    """Which one; `mini` takes half an hour on two cores, `tiny` ten minutes."""
    steps: int | None = None
    """Optimiser steps; by default the recipe's."""
    keep: Path | None = None
    """Keep the run in this folder; one that was stopped goes on."""
    run: Path | None = None
    """Evaluate this run of a bitgen instead of training one; nothing is recorded."""
    out: Path = RESULTS
    """Folder whose scenes.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "steps")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them."""
    options = parse(Scenes, argv, "bench scenes")
    if options.run is not None:
        return _print(measured(options.run), [])
    preset = f"bitgen:{options.preset}"
    steps = options.steps or jaxmodels.arch("bitgen").RECIPES[options.preset].steps
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        run = Run("scenes", {"threads": cores(), "steps": steps})
        path = options.keep or Path(folder) / "run"
        seconds = timed("train", preset, "--out", str(path), "--steps", str(steps))
        learned = measured(path)
    records = [
        run.record(f"{preset}, {name}", "jaxmodels", "share", value, train_seconds=seconds)
        for name, value in learned.items()
    ]
    say(f"added to {save(records, options.out)}")
    return _print(learned | {"seconds of training, startup included": seconds}, records)


def _print(values: dict[str, float], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for name, value in values.items():
        print(f"{name:<40} {value:.3f}", flush=True)
    return records


def measured(
    path: Path, spec: str = "shapes", asked: int = ASKED, **options: Any
) -> dict[str, float]:
    """Shares of the held-out scenes that a run's model gets right.

    Args:
        path: the run.
        spec: of the scenes.
        asked: scenes that are written to the memory, and as many that are not.
        options: of `open_data`.
    """
    from data_pipelines.pipelines import open_data
    from jaxmodels.commands.open import open_model

    model, tokenizer = open_model(path, None, ())
    if jaxmodels.package_of(model) is not jaxmodels.arch("bitgen"):
        raise Problem(
            "only a bitgen can be evaluated on scenes",
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
        **_retrieval(model, batches),
        **_captioning(model, tokenizer, batches),
        "captions recalled by their images": _recall(model, batches[0]),
        **remembering(path, asked),
        **_packed(path, model, tokenizer, batches),
    }


def _retrieval(model: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """R@1 among all pairs, and the accuracy of matching against the likeliest negative of 32."""
    from jaxmodels.runtime.evaluate import evaluate, loss_function
    from jaxmodels.runtime.paths import split
    from jaxmodels.runtime.retrieval import Encoder

    encoder = Encoder(model)
    similar = encoder.texts(batches) @ encoder.images(b["images"] for b in batches).T
    own = np.arange(len(similar))
    graphdef, params, rest = split(model)
    function = loss_function(jaxmodels.package_of(model), graphdef)
    metrics = evaluate(function, params, rest, batches)
    assert metrics is not None
    return {
        "R@1 text to image": float((similar.argmax(axis=1) == own).mean()),
        "R@1 image to text": float((similar.argmax(axis=0) == own).mean()),
        "image-text matching right": float(metrics["itm_acc"]),
    }


def _captioning(model: Any, tokenizer: Any, batches: list[dict[str, Any]]) -> dict[str, float]:
    """How often a greedy caption names an object of the scene, and both of them."""
    from jaxmodels.runtime.training.samples import caption

    hits = []
    for batch in batches:
        for row, mask, ids in zip(
            batch["tokens"], batch["mask"], caption(model, tokenizer, batch["images"]), strict=True
        ):
            shown = things(tokenizer.decode(row[mask == 1]))
            hits.append(len(shown & things(tokenizer.decode(ids))) / len(shown))
    return {
        "things named with colour and shape": float(np.mean(hits)),
        "captions that name both things": float(np.mean(np.equal(hits, 1))),
    }


def things(text: str) -> set[tuple[str, str]]:
    """The (colour, shape) pairs that a caption names, wherever they are in it."""
    return {(a, b) for a, b in pairwise(text.split()) if a in COLOURS and b in SHAPES}


def _recall(model: Any, batch: dict[str, Any]) -> float:
    """Share of 32 captions, written with their images, that the memory returns for the image."""
    from jaxmodels.bitgen import remember

    tokens, mask = jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"])
    images = jnp.asarray(batch["images"], jnp.float32) / 255
    stats = remember.write(model, tokens, images, mask)
    found = remember.read(model, images=images, stats=stats)
    index, _ = remember.nearest(found, remember.codes(model, tokens, mask))
    return float((index == jnp.arange(len(tokens))).mean())


def _packed(
    run: Path, model: Any, tokenizer: Any, batches: list[dict[str, Any]]
) -> dict[str, float]:
    """The same of the packed model, and how many of its captions are the model's, word for word."""
    import bridge
    from jaxmodels.runtime.training.samples import caption

    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        bridge.convert(run, Path(folder) / "packed", to="packed")
        small = bridge.load(Path(folder) / "packed")
    same = [
        np.array_equal(one, other)
        for batch in batches
        for one, other in zip(
            *(caption(each, tokenizer, batch["images"]) for each in (model, small)), strict=True
        )
    ]
    learned = _retrieval(small, batches) | _captioning(small, tokenizer, batches)
    return {f"packed, {name}": value for name, value in learned.items()} | {
        "packed, captions equal to the unpacked model's": float(np.mean(same))
    }
