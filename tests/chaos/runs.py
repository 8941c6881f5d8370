"""A small run of each architecture, each on another kind of data; and how two runs differ."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.sources import open_text
from tests.data_pipelines import tfds_on_disk
from tests.jaxmodels import scenes

ROOT = Path(__file__).parents[2]
STEPS = 60
OFTEN = ["--steps", str(STEPS), "--eval-every", "15", "--save-every", "6", "--sample-every", "20"]
OFTEN += ["--stats-every", "10", "--keep", "3"]
SPEED = ("_per_second", "mfu")  # suffixes of metrics that differ from run to run


@dataclass(frozen=True)
class Case:
    """A run: `words` come after `jaxmodels train`, before --out."""

    name: str
    words: list[str]
    env: dict[str, str]

    def start(self, out: Path, *flags: str) -> subprocess.Popen[str]:
        """Starts or resumes the run."""
        words = ["-m", "jaxmodels", "train", *self.words, "--out", str(out), *flags]
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **self.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, out: Path) -> None:
        """Trains to the last step."""
        process = self.start(out)
        output = process.communicate()[1]
        if process.returncode != 0:
            raise AssertionError(f"{self.name}: exit code {process.returncode}\n{output[-2000:]}")


def texts() -> list[str]:
    """A hundred documents of English prose."""
    text = "".join(open_text("pydoc").chunks())
    return [text[at : at + 1500] for at in range(0, 150_000, 1500)]


def cases(folder: Path) -> list[Case]:
    """All cases; their data is written into the folder."""
    written = texts()
    lines, table, tfds = folder / "texts.jsonl", folder / "texts.parquet", folder / "tfds"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
    pq.write_table(pa.table({"text": written}), table)
    tfds.mkdir()
    streamed = tfds_on_disk.write(tfds, written)
    images = scenes.folder(folder / "scenes")
    batch = ["--batch", "16"]
    dropout = ["--model.dropout", "0.1"]

    def case(name: str, words: list[str], make: Callable[..., list[str]] = list) -> Case:
        return Case(name, [*make(words), *OFTEN], {"TFDS_DATA_DIR": str(tfds)})

    def vision(arch: str, data: str, *flags: str) -> list[str]:
        return [f"{arch}:tiny", "--data", data, *scenes.SIZES[arch], *scenes.FLAGS, *flags]

    mixed = f"mix:3*jsonl:{lines},1*{streamed}"
    return [
        case("charlm, TFDS streamed, accumulation", [
            "charlm:tiny", "--data", streamed, "--accum", "2", *batch, *dropout]),
        case("wikigpt, JSON lines, EMA", [
            "wikigpt:tiny", "--data", f"jsonl:{lines}", "--ema-decay", "0.9", *batch]),
        case("bwetaf, Parquet, saves by the clock", [
            "bwetaf:tiny", "--data", f"parquet:{table}", "--save-minutes", "0.01", *batch]),
        case("wigip, a mixture", ["wigip:tiny", "--data", mixed, *batch]),
        case("bitgen, an image folder, accumulation", vision("bitgen", images, "--accum", "2")),
        case("bitgen_stage1, drawn scenes", vision("bitgen_stage1", "shapes:28")),
    ]  # fmt: skip


def differences(one: Path, two: Path) -> list[str]:
    """What is not bit-identical in the last checkpoints and the logs of two runs, of which the
    first never changes."""
    both = ((_cached_tree, one), (_tree, two))
    found = [
        f"{name} of the last checkpoint"
        for name in ("params", "train", "ema")
        if not _equal(*(tree(run / f"checkpoints/{STEPS}/{name}") for tree, run in both))
    ]
    for name in ("metrics.jsonl", "stats.jsonl"):
        if _records(one / name) != _records(two / name):
            found.append(name)
    samples = [{p.name: p.read_bytes() for p in (run / "samples").glob("*")} for run in (one, two)]
    if samples[0] != samples[1]:
        found.append("samples")
    data = [(run / "checkpoints" / str(STEPS) / "data.json").read_bytes() for run in (one, two)]
    if data[0] != data[1]:
        found.append("the position in the data")
    return found


def _tree(path: Path) -> Any:
    if not path.exists():  # of a run that keeps no average
        return {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return jax.tree.map(np.asarray, reader.restore(path))


_cached_tree = cache(_tree)


def _equal(one: Any, two: Any) -> bool:
    (ours, shape), (theirs, other) = map(jax.tree.flatten, (one, two))
    return shape == other and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def _records(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in json.loads(line).items() if not name.endswith(SPEED)}
        for line in path.read_text().splitlines()
    ]
