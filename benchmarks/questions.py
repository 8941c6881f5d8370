"""What a bitgen answers about drawn scenes: `jaxmodels bench questions`.

A model that has learned to caption the scenes is fine-tuned on questions about them, and asked
about the 256 held-out scenes, whose combinations of objects are new to it. Each kind of question
is compared with the best answer that is the same to all. Also measured: how well captions and
images still find each other, since only the answers are learned.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Run, positive, save
from benchmarks.processes import measured, timed
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say

RUNS = ((),)
QUICK = (("--first", "4", "--steps", "3"),)

PRESET = "bitgen:tiny"


@dataclass(frozen=True)
class Questions:
    """Fine-tune a bitgen on questions about drawn scenes, and ask it."""

    init: Path | None = None
    """A run that has learned `shapes`; by default one of bitgen:tiny is trained first."""
    first: int | None = None
    """Steps of that; by default the recipe's."""
    steps: int = 1000
    """Steps of fine-tuning."""
    keep: Path | None = None
    """Keep the runs in this folder; one that was stopped goes on."""
    out: Path = RESULTS
    """Folder whose questions.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "first", "steps")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them."""
    options = parse(Questions, argv, "bench questions")
    run = Run("questions", {"threads": cores(), "steps": options.steps})
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        preset, found, seconds = _answered(options, options.keep or Path(folder))
    records = [
        run.record(f"{preset}, {name}", "jaxmodels", "share", value, train_seconds=seconds)
        for name, value in found.items()
    ]
    say(f"added to {save(records, options.out)}")
    for name, value in found.items():
        print(f"{name:<44} {value:.3f}", flush=True)
    return records


def _answered(options: Questions, folder: Path) -> tuple[str, dict[str, float], float]:
    """The preset, what was measured, and the seconds of fine-tuning."""
    captioner = options.init or folder / "captioner"
    if options.init is None:
        first = ["--steps", str(options.first)] if options.first else []
        timed("train", PRESET, "--data", "shapes", "--out", str(captioner), *first)
    asked = folder / "asked"
    words = ["train", "--init", str(captioner), "--new-words", "--data", "questions:shapes"]
    seconds = timed(*words, "--out", str(asked), "--steps", str(options.steps))
    answers = measured("eval", str(asked), "--questions", "shapes")
    found = {"right": answers["accuracy"], "right by a constant answer": answers["chance"]}
    for kind, each in answers["by_type"].items():
        found[f"right about {kind}"] = each["accuracy"]
        found[f"right about {kind} by a constant answer"] = each["chance"]
    for name, path in (("before", captioner), ("after", asked)):
        recall = measured("eval", str(path), "--data", "shapes")
        found[f"R@1 text to image {name}"] = recall["t2i_recall_at_1"]
        found[f"R@1 image to text {name}"] = recall["i2t_recall_at_1"]
    return _preset(asked), found, seconds


def _preset(run: Path) -> str:
    from jaxmodels.runtime.settings import read_file

    settings = read_file(run / "config.json")
    return f"{settings['arch']}:{settings['preset']}"
