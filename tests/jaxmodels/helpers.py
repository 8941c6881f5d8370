"""Runs of the smallest model, and their results."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import bridge
from jaxmodels.__main__ import main
from jaxmodels.runtime.metrics import read

SMALL = ["--steps", "30", "--eval-every", "10", "--save-every", "10", "--sample-every", "0"]


def train(out: Path, *flags: str) -> int:
    return main(["train", "charlm:tiny", "--out", str(out), *SMALL, *flags])


def command(*words: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxmodels", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def params(run: Path, step: int) -> dict[str, np.ndarray]:
    source = bridge.open_checkpoint(run / "checkpoints" / str(step))
    return {path: tensor.read() for path, tensor in source.tensors.items()}


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all((one[path] == two[path]).all() for path in one)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read(run / "metrics.jsonl")]
