"""What bitgen learns from drawn scenes in minutes: `jaxmodels bench scenes`.

Trains `bitgen:tiny` or `bitgen:mini` with its own recipe, as `jaxmodels train` does, and evaluates
it on the 256 held-out scenes, whose combinations of objects are new to it: retrieval of images and
captions, matching against hard negatives, captioning, and recall of captions from its memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

import jaxmodels
from benchmarks.harness import RESULTS, Run, positive, save
from data_pipelines.captions.shapes import COLOURS, SHAPES, Scene, captions, draw, scene
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.commands.memory_options import Forget, Write
from jaxmodels.errors import INTERNAL, USAGE, Problem

RUNS = ((),)
QUICK = (("--steps", "20"),)

REMEMBERED = 32  # captions written into the memory at once
ASKED = 200  # scenes written with `jaxmodels memory`, and scenes not written


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
        seconds = _train(preset, path, steps)
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


def _train(preset: str, path: Path, steps: int) -> float:
    """Trains with the command; returns its total seconds.

    Raises:
        Problem: it failed, with its exit code; the command has printed why.
    """
    words = ["train", preset, "--out", str(path), "--steps", str(steps)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jaxmodels", *words], stdout=sys.stderr, check=False
    )
    if done.returncode:
        raise Problem(
            "training ended early",
            where=f"jaxmodels {' '.join(words)}",
            fix="see its message above",
            exit_code=done.returncode if done.returncode > 0 else INTERNAL,
        )
    return round(time.monotonic() - began, 1)


def measured(path: Path, spec: str = "shapes", **options: Any) -> dict[str, float]:
    """Shares of the held-out scenes that a run's model gets right.

    Args:
        path: the run.
        spec: of the scenes.
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
        **_remembering(path),
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


def _remembering(run: Path) -> dict[str, float]:
    """What `jaxmodels memory` answers: 200 scenes that it wrote, and 200 others.

    As many as the memory holds are written at once.
    """
    import bridge
    from jaxmodels.bitgen import closeness
    from jaxmodels.commands.memory_actions import forget, write
    from jaxmodels.commands.memory_model import Memorable

    written, others = _different_scenes(2 * ASKED, ASKED)
    right, refused, answered = np.zeros(2), np.zeros(2), np.zeros(2)
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as temporary:
        folder, file = Path(temporary) / "model", Path(temporary) / "facts.jsonl"
        bridge.convert(run, folder)
        size = Memorable(folder).config.slots
        for i in range(0, ASKED, size):
            _save(written[i : i + size], file, Memorable(folder).config.image_size)
            write(Write(folder, file=file, data="shapes"))
            asked = Memorable(folder)
            for image in (False, True):
                for scenes, own in ((written[i : i + size], True), (others[i : i + size], False)):
                    texts = [captions(scene)[0] for scene in scenes]
                    pixels = np.stack([draw(scene, asked.config.image_size) for scene in scenes])
                    features = asked.images(pixels) if image else asked.texts(texts).features
                    for text, feature in zip(texts, features, strict=True):
                        found = closeness.nearest(asked.record, asked.closeness(), feature, image)
                        assert found is not None
                        answered[int(image)] += found.close and not own
                        refused[int(image)] += own and not found.close
                        right[int(image)] += own and found.close and found.item.text == text
            forget(Forget(folder, all=True))
    shares = {}
    for i, kind in enumerate(("text", "image")):
        shares[f"memory read by {kind}: written, and right"] = right[i] / ASKED
        shares[f"memory read by {kind}: written, refused"] = refused[i] / ASKED
        shares[f"memory read by {kind}: unwritten, answered"] = answered[i] / ASKED
    return {name: float(share) for name, share in shares.items()}


def _different_scenes(count: int, split: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes of another seed, no two of the same content, in two parts."""
    found = {each.combination: each for each in (scene(i, seed=1) for i in range(2 * count))}
    scenes = [*found.values()][:count]
    return scenes[:split], scenes[split:]


def _save(scenes: list[Scene], file: Path, side: int) -> None:
    """Writes images of scenes, and a file that names them with their captions."""
    from PIL import Image

    lines = []
    for i, each in enumerate(scenes):
        Image.fromarray(draw(each, side)).save(file.parent / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": captions(each)[0]}))
    file.write_text("\n".join(lines))
