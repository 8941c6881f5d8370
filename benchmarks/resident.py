"""Resident memory of an opened model, packed and in float32, by JAX and by the PyTorch twin.

Each model is opened in a process of its own, which has opened a tiny one before, so that imports
and what libraries set up once are not counted: the result is by how much the process has grown,
as the system says it. Nothing is computed; what a computation takes besides is not in it.
"""

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bridge
from benchmarks.bridge import draw
from benchmarks.harness import Absent, Run, save
from jaxmodels.cli import say
from jaxmodels.errors import INTERNAL, Problem

# Contestant → (format of the folder, what opens it).
CONTESTANTS = {
    "jaxmodels, packed": ("packed", "jax"),
    "PyTorch twin, packed": ("packed", "torch"),
    "jaxmodels, float32": ("safetensors", "jax"),
}
STATUS = Path("/proc/self/status")


def main(preset: str, out: Path) -> list[dict[str, Any]]:
    """Measures a preset, adds the records to the results and prints them.

    Raises:
        Absent: the system does not say how much memory is resident (it has no /proc).
    """
    if not STATUS.exists():
        raise Absent("resident memory is read from Linux's /proc")
    run = Run("memory", {"dtype": "float32"})
    with tempfile.TemporaryDirectory(prefix="resident-") as name:
        work = Path(name)
        for model in (preset, _tiny(preset)):
            folder = work / _of(model)
            if folder.exists():  # the preset is the tiny one
                continue
            say(f"writing {model}")
            draw(model, folder)
            for to in ("safetensors", "packed"):
                bridge.convert(folder, folder / to, to=to, verify="none")
        records = [_record(run, preset, contestant, work) for contestant in CONTESTANTS]
    say(f"added to {save(records, out)}")
    print(f"\n### Resident memory of {preset}, opened and at rest")
    print("| | MB on disk | MB resident | resident / disk |\n| --- | ---: | ---: | ---: |")
    for record in records:
        size, share = record["file_bytes"] / 1e6, record["share_of_file"]
        held = record["median"] / 1e6
        print(f"| {record['contestant']} | {size:,.1f} | {held:,.1f} | {share:.2f} |", flush=True)
    return records


def _record(run: Run, preset: str, contestant: str, work: Path) -> dict[str, Any]:
    to, by = CONTESTANTS[contestant]
    tiny, folder = (work / name / to for name in (_of(_tiny(preset)), _of(preset)))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    words = [sys.executable, "-m", "benchmarks.resident", by, str(tiny), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(
            "a process that opened a model failed",
            where=" ".join(words),
            why=done.stderr[-2000:],
            exit_code=INTERNAL,
        )
    held = json.loads(done.stdout)
    return run.record(
        f"{preset}, opened", contestant, "bytes", held, file_bytes=size, share_of_file=held / size
    )


def _tiny(preset: str) -> str:
    return f"{preset.partition(':')[0]}:tiny"


def _of(preset: str) -> str:
    return preset.replace(":", "-")


def grown(by: str, tiny: Path, folder: Path) -> int:
    """Bytes by which this process grows when it opens the model in `folder`, and holds it."""
    load = {"jax": bridge.load, "torch": bridge.torch.load}[by]
    kept = load(tiny)  # its memory is not free for the next one
    before = _resident()
    model = load(folder)
    held = _resident() - before
    del model, kept
    return held


def _resident() -> int:
    gc.collect()
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(grown(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
