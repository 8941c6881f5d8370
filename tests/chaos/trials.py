"""The four kinds of faults. Each function returns failures, one line each, and the number of
trials."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, INTERNAL, NO_SPACE, STOPPED
from jaxmodels.runtime.reporting import plots
from tests.chaos.runs import Case, differences

Wrong = list[str]
TERMINATED = -signal.SIGTERM  # before the handler is installed, when there is nothing to lose


def kills(
    case: Case, reference: Path, out: Path, count: int, rng: random.Random
) -> tuple[Wrong, int]:
    """SIGKILL at random moments, then train to the end: the result is that of an unbroken run."""
    began = time.monotonic()
    landed, longest = 0, 8.0
    while landed < count and time.monotonic() - began < 60 * count:
        process = case.start(out)
        try:
            process.communicate(timeout=rng.uniform(1.0, longest))
            longest *= 0.8  # the run had finished: start again, kill sooner
            shutil.rmtree(out)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            landed += 1
    case.finish(out)
    return [
        f"{case.name}: after {landed} kills: {line}" for line in differences(reference, out)
    ], landed


_PHASES: dict[str, Callable[[Path], bool]] = {
    "at once": lambda run: True,
    "while modules are imported": lambda run: (run / ".lock").exists(),
    "while data is prepared": lambda run: (run / "data").exists(),
    "before the first step": lambda run: (run / "config.json").exists(),
    "while steps are done": lambda run: (run / "metrics.jsonl").exists(),
    "while a checkpoint is written": lambda run: _unfinished(run / "checkpoints"),
    "after a checkpoint": lambda run: (run / "checkpoints" / "12").exists(),
    "while a sample is written": lambda run: (run / "samples").exists(),
}


def _unfinished(folder: Path) -> bool:
    return folder.exists() and any(not path.name.isdecimal() for path in folder.iterdir())


def signals(case: Case, reference: Path, out: Path) -> tuple[Wrong, int]:
    """SIGTERM in each phase: exit code 75 (or no handler yet), and the run can be resumed."""
    wrong = []
    for number, (phase, reached) in enumerate(_PHASES.items()):
        run = out / str(number)
        process = case.start(run)
        while process.poll() is None and not reached(run):
            time.sleep(0.001)
        process.terminate()
        output = process.communicate()[1]
        allowed = (STOPPED, DONE) if phase != "at once" else (STOPPED, TERMINATED)
        if process.returncode not in allowed or "Traceback" in output:
            wrong.append(f"{case.name}: SIGTERM {phase}: exit code {process.returncode}")
        case.finish(run)
        lines = differences(reference, run)
        wrong += [f"{case.name}: after SIGTERM {phase}: {line}" for line in lines]
        shutil.rmtree(run)
    return wrong, len(_PHASES)


@contextlib.contextmanager
def _disk(path: Path, size: int) -> Iterator[None]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def full_disks(case: Case, reference: Path, out: Path, count: int) -> tuple[Wrong, int]:
    """A disk too small for the run: exit code 7, and with more space the run can be resumed."""
    if os.geteuid() != 0:
        return ["full disks were not tried: mounting one needs root"], 0
    size = sum(path.stat().st_blocks * 512 for path in reference.rglob("*"))
    wrong = []
    for number in range(count):
        disk, run = out / f"disk{number}", out / f"run{number}"
        with _disk(disk, int(size * (number + 0.5) / count)):
            process = case.start(disk / "run")
            output = process.communicate()[1]
            if process.returncode not in (NO_SPACE, DONE) or "Traceback" in output:
                wrong.append(f"{case.name}: disk {number}: exit code {process.returncode}")
            if (disk / "run").exists():
                shutil.copytree(disk / "run", run)
        case.finish(run)
        lines = differences(reference, run)
        wrong += [f"{case.name}: after full disk {number}: {line}" for line in lines]
        shutil.rmtree(run)
    return wrong, count


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


_DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": _flip,
    "deleted": lambda path, rng: path.unlink(),
    "cut": lambda path, rng: os.truncate(path, path.stat().st_size // 2),
}


# Without its seal the damage of a run's other files cannot be detected.
_UNDETECTABLE = {("digests.json", "deleted")}


def damage(case: Case, reference: Path, out: Path, rng: random.Random) -> tuple[Wrong, int]:
    """Each file damaged in each way: `verify` detects it, `train` resumes exactly or refuses."""
    wrong, tried = [], 0
    files = [
        path.relative_to(reference)
        for path in sorted(reference.rglob("*"))
        if path.is_file() and path.stat().st_size and path.name != ".lock"
    ]
    for name in files:
        for how, inflict in _DAMAGE.items():
            if (name.name, how) in _UNDETECTABLE:
                continue
            run = Path(shutil.copytree(reference, out / "run"))
            inflict(run / name, rng)
            at, tried = f"{case.name}: {name} {how}", tried + 1
            if _called("verify", str(run))[0] == DONE:
                wrong.append(f"{at}: verify detects nothing")
            code, output = _called("train", "--out", str(run))
            if code == INTERNAL or "Traceback" in output:
                wrong.append(f"{at}: train: a defect")
            if code == DONE:
                wrong += [f"{at}: train: {line}" for line in _lost(reference, run, name)]
            shutil.rmtree(run)
    return wrong, tried


def _lost(reference: Path, run: Path, damaged: Path) -> list[str]:
    """What differs after a call that succeeded, except for the damaged file itself."""
    try:
        found = differences(reference, run)
    except (OSError, ValueError) as error:
        found = [repr(error)]
    return [line for line in found if line.split(".")[0] not in str(damaged)]


def _called(*words: str) -> tuple[int, str]:
    """Runs a command in this process, without plots, which take most of the time of a call that
    finds nothing left to train: its exit code and output."""
    output = io.StringIO()
    without_plots = patch.object(plots, "draw")
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output), without_plots:
        code = main(list(words))
    return code, output.getvalue()
