"""Conversion against a plain copy of the file and a naive script: `jaxmodels bench bridge`.

The source is a safetensors file of random weights in our names and layouts, so that every kernel
is transposed for PyTorch. All contestants read it and write as many bytes, synced to the disk.

With `--to packed` or `--to onnx` our conversion runs alone, and the size of what it writes is the
result: all files of the folder, of a model without a tokeniser. ONNX graphs are checked by
onnxruntime, which is part of the time.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

import bridge
import jaxmodels
from benchmarks.harness import RESULTS, Call, Contestant, Run, Timing, positive, race, save, table
from bridge.core import table as weights
from bridge.core.tensors import Tensor
from bridge.storage.safetensors_writer import SINGLE, write_file
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.sizes import parameter_shapes

# Options of each run of `jaxmodels bench`; QUICK with --quick.
RUNS = (
    (),
    *(
        ("--preset", f"bitgen:{preset}", "--to", to, "--rounds", "1")
        for to in ("packed", "onnx")
        for preset in ("mini", "edge", "card")
    ),
)
QUICK = (
    ("--preset", "charlm:tiny", "--rounds", "1"),
    ("--preset", "bitgen:tiny", "--to", "packed", "--rounds", "1"),
)


@dataclass(frozen=True)
class Conversion:
    """Measure speed and memory of a conversion."""

    preset: str = "wigip:1.7b"
    """ARCH:PRESET with the sizes of the random weights."""
    to: Literal["safetensors", "packed", "onnx"] = "safetensors"
    """What it is converted to; the last two for sizes on the disk."""
    rounds: int = 3
    """Timed conversions of each contestant, after one that is not."""
    out: Path = RESULTS
    """Folder whose bridge.jsonl the results are added to."""
    work: Path | None = None
    """Folder for the files, more than twice the size of the weights; a temporary one by default."""

    def __post_init__(self) -> None:
        positive(self, "rounds")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Conversion, argv, "bench bridge")
    with tempfile.TemporaryDirectory(dir=options.work, prefix="bridge-") as name:
        work = Path(name)
        run = Run("bridge", {"dtype": "float32", "threads": cores()})
        say(f"drawing the weights of {options.preset}")
        largest = draw(options.preset, work / "source")
        size = (work / "source" / SINGLE).stat().st_size
        contestants = [Contestant(n, partial(make, work)) for n, make in _made_by(options).items()]
        timings = race(contestants, options.rounds, warmup=1, isolated=True)

    def extra(timing: Timing) -> dict[str, Any]:
        found = {
            "file_bytes": size,
            "written_bytes": timing.value,
            "largest_tensor_bytes": largest,
            "mb_per_s": size / median(timing.seconds) / 1e6,
            # Includes the memory of imports; no weights are held at rest.
            "bytes_beyond_largest_tensor": (timing.peak_bytes or 0) - largest,
        }
        for copied in timings:
            if copied.name == COPY:
                share = median(copied.seconds) / median(timing.seconds)
                found["share_of_copy_speed"] = share
        return found

    to = "" if options.to == "safetensors" else f", to {options.to}"
    records = run.records(f"{options.preset}{to}", timings, extra)
    say(f"added to {save(records, options.out)}")
    print(f"\n### Conversion of {options.preset}{to}, {size / 1e6:,.0f} MB in float32")
    columns = {"mb_per_s": "MB/s", "written_bytes": "bytes written"}
    if COPY in _made_by(options):
        columns["share_of_copy_speed"] = "of a copy's speed"
    print(table(records, columns | {"peak_bytes": "peak bytes of the process"}), flush=True)
    return records


def _made_by(options: Conversion) -> dict[str, Callable[[Path], Call]]:
    if options.to == "safetensors":
        return CONTESTANTS
    verify = "logits" if options.to == "onnx" else "digest"
    return {"jaxmodels": partial(ours, to=options.to, verify=verify)}


def draw(preset: str, folder: Path) -> int:
    """Writes a model of random weights in our names; returns the bytes of its largest tensor."""
    arch, _, config = jaxmodels.preset(preset)
    folder.mkdir()
    shapes = parameter_shapes(arch, config)
    paths = weights.pairs(jaxmodels.arch(arch).WEIGHTS, shapes)
    tensors = [_random(pair.ours, shapes[pair.ours], i) for i, pair in enumerate(paths)]
    write_file(folder / SINGLE, tensors)
    (folder / "config.json").write_text(json.dumps({"arch": arch, **asdict(config)}))
    return max(tensor.nbytes for tensor in tensors)


def _random(path: str, shape: tuple[int, ...], seed: int) -> Tensor:
    def read() -> np.ndarray:
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        # Matrices that keep the size of what they multiply: graphs of it are run.
        return values if len(shape) < 2 else values * np.float32(shape[-2] ** -0.5)

    return Tensor(path.replace("/", "."), shape, np.dtype(np.float32), read)


def ours(work: Path, verify: str, to: str = "safetensors") -> Call:
    """bridge.convert, its output read back or not."""

    def write(target: Path) -> None:
        bridge.convert(work / "source", target, to=to, verify=verify)

    return _and_remove(work / f"ours-{verify}", write)


def copy(work: Path) -> Call:
    """A copy of the file."""

    def write(target: Path) -> None:
        target.mkdir()
        shutil.copyfile(work / "source" / SINGLE, target / SINGLE)
        _sync(target / SINGLE)

    return _and_remove(work / "copy", write)


def naive(work: Path) -> Call:
    """A script for a single use: loads everything, transposes it, saves it."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(cores())

    def write(target: Path) -> None:
        target.mkdir()
        state = load_file(work / "source" / SINGLE)
        transposed = {
            name: value.T.contiguous() if value.ndim == 2 else value
            for name, value in state.items()
        }
        save_file(transposed, target / SINGLE)
        _sync(target / SINGLE)

    return _and_remove(work / "naive", write)


COPY = "file copy"
CONTESTANTS: dict[str, Callable[[Path], Call]] = {
    "jaxmodels": partial(ours, verify="digest"),
    "jaxmodels, not read back": partial(ours, verify="none"),
    COPY: copy,
    "naive torch script": naive,
}


def _and_remove(target: Path, write: Callable[[Path], None]) -> Call:
    """Writes, then removes the output: four of them would evict the source from the page cache.
    Returns its bytes."""

    def call(index: int) -> int:
        write(target)
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        shutil.rmtree(target)
        return size

    return call


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
