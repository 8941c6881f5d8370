"""What phase 2 of wigip learns from drawn scenes beside text: `jaxmodels bench pictures`.

Phase 1 trains `wigip:tiny-images` without its images on pydoc. Two runs go on from there: one on
text alone, and one on the same batches of text, in the same order, between batches of scenes with
captions. Measured are how captions and the 256 held-out scenes find each other, the error of each
patch predicted from those before it against that of the mean of the training images, and the loss
on held-out text of both runs.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, Run, positive, save
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.errors import INTERNAL, Problem

RUNS = ((),)
QUICK = (("--first", "4", "--steps", "3", "--pairs", "2"),)

PRESET = "wigip:tiny-images"
TEXT = "mix:1*pydoc"


@dataclass(frozen=True)
class Pictures:
    """Train wigip on text, then on text and drawn scenes, and compare with text alone."""

    first: int = 200
    """Batches of text in phase 1."""
    steps: int = 200
    """Batches of text after it, in both runs."""
    pairs: int = 6
    """Batches of scenes for each of these."""
    keep: Path | None = None
    """Keep the runs in this folder; one that was stopped goes on."""
    out: Path = RESULTS
    """Folder whose pictures.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "first", "steps", "pairs")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them."""
    options = parse(Pictures, argv, "bench pictures")
    sizes = {"first": options.first, "steps": options.steps, "pairs": options.pairs}
    run = Run("pictures", {"threads": cores(), **sizes})
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        found = measured(options, options.keep or Path(folder))
    if "seconds of training, both phases" in found:
        found["seconds of all, startup included"] = round(time.monotonic() - began, 1)
    records = [
        run.record(f"{PRESET}, {name}", "jaxmodels", "value", value)
        for name, value in found.items()
    ]
    say(f"added to {save(records, options.out)}")
    for name, value in found.items():
        print(f"{name:<50} {value:.4f}", flush=True)
    return records


def measured(options: Pictures, folder: Path) -> dict[str, float]:
    """Trains the three runs in a folder and measures them."""
    one, alone, both = runs = [folder / name for name in ("phase1", "text", "images")]
    kept = any(run.exists() for run in runs)
    only_text = ("--model.no-images", "--data", TEXT)
    seconds = _train(PRESET, one, options.first, *only_text)
    _train(PRESET, alone, options.steps, *only_text, "--init", str(one))
    spec = f"{TEXT},{options.pairs}*shapes"
    steps = options.steps * (1 + options.pairs)
    seconds += _train(PRESET, both, steps, "--data", spec, "--init", str(one))
    of_alone = _eval(alone, "--data", TEXT)
    of_text, of_images = _eval(both, "--data", TEXT), _eval(both, "--data", "shapes")
    return {
        "R@1 text to image": of_images["t2i_recall_at_1"],
        "R@1 image to text": of_images["i2t_recall_at_1"],
        "image loss": of_images["image_loss"],
        "image loss of the mean image": mean_image_loss(both),
        "text loss after phase 1": _eval(one, "--data", TEXT)["loss"],
        "text loss after text alone": of_alone["loss"],
        "text loss after text and images": of_text["loss"],
        "text loss lost to images": of_text["loss"] - of_alone["loss"],
        # Of runs that were there already nothing is known.
        **({} if kept else {"seconds of training, both phases": seconds}),
    }


def mean_image_loss(run: Path) -> float:
    """The loss if every patch is predicted as the mean of the training images has it.

    Args:
        run: of a model that reads images, whose data has them.
    """
    import jax.numpy as jnp

    from data_pipelines.pipelines import open_data
    from jaxmodels.commands.open import open_model
    from jaxmodels.commands.run_data import image_sizes
    from jaxmodels.wigip.images import patches

    model, tokenizer = open_model(run, None, ())
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        data: Any = open_data(
            "shapes",
            folder=Path(folder) / "data",
            context=model.config.context,
            batch=256,
            tokenizer=tokenizer,
            **image_sizes(model.config),
        )
        batches = data.train()
        mean = np.mean([next(batches)["images"].mean(axis=0) for _ in range(20)], axis=0)
        images = np.concatenate([batch["images"] for batch in data.valid()])
    pixels, drawn = (patches(model, jnp.asarray(x) / 255) for x in (images, mean[None]))
    return float(jnp.square(pixels - drawn)[:, 1:].mean())


def _train(preset: str, path: Path, steps: int, *words: str) -> float:
    """Trains with the command; returns its total seconds."""
    began = time.monotonic()
    every = str(max(steps // 3, 1))
    when = ("--eval-every", every, "--save-every", every, "--sample-every", every)
    _command("train", preset, "--out", str(path), "--steps", str(steps), *when, *words)
    return round(time.monotonic() - began, 1)


def _eval(path: Path, *words: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(_command("eval", str(path), "--json", *words))
    return found


def _command(*words: str) -> str:
    """What a command prints on standard output.

    Raises:
        Problem: it failed, with its exit code; the command has printed why.
    """
    done = subprocess.run(
        [sys.executable, "-m", "jaxmodels", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise Problem(
            "a command ended early",
            where=f"jaxmodels {' '.join(words)}",
            fix="see its message above",
            exit_code=done.returncode if done.returncode > 0 else INTERNAL,
        )
    return done.stdout
