"""Changes inputs of every format at random, and sees that no reader does what it must not.

    python -m tests.bridge.fuzz --count 20000 --seed 0

Each input is made from the seed and its number alone (`--first N --count 1` repeats one). Readers,
those of legacy files too, run in one process with limits: 10 s of the processor for an input (in
proportion more on one that is slower than `SUMMED`), 2 GB of memory more than at rest, no file
larger than 200 MB. Failures are printed; exit code 1 if there are any.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import bridge
from bridge.core.tensors import digest_of
from data_pipelines.tokenizer_trial import _TRIAL
from jaxmodels.errors import CORRUPT, MISMATCH, NO_SPACE, UNSAFE, UNVERIFIED, USAGE, Problem
from tests.bridge import fuzz_corpus
from tests.bridge.fuzz_mutate import mutate
from tests.bridge.helpers import in_this_process

SECONDS, MEMORY, LARGEST = 10, 2_000_000_000, 200_000_000
SUMMED = 0.045  # seconds for a million sums, below, of the processor that the limit was set on
CODES = {USAGE, CORRUPT, UNSAFE, MISMATCH, NO_SPACE, UNVERIFIED}
# Audit events of what no reader has reason to do.
FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "webbrowser.open",
    "ctypes.dlopen", "urllib.Request",
}  # fmt: skip


class Hang(BaseException):
    """An input took too long."""


class Watch:
    """Notes what is forbidden while an input is read."""

    def __init__(self, sandbox: Path):
        self.sandbox, self.on = str(sandbox), False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or (event == "subprocess.Popen" and _TRIAL in args[1]):
            return
        if event in FORBIDDEN or (event == "import" and args[0] == "fuzz_canary"):
            self.seen.append(f"{event} {str(args)[:100]}")
        elif event == "open" and isinstance(args[0], str | bytes) and _writes(args[2]):
            name = os.path.abspath(os.fsdecode(args[0]))
            if not name.startswith(self.sandbox):
                self.seen.append(f"writes {name}")


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def read(path: Path, config: dict[str, Any]) -> tuple[dict[str, str], Any] | None:
    """Every tensor's digest and the Config; None if it is refused, with words."""
    try:
        source = bridge.open_checkpoint(path, config=config)
        tensors = {name: digest_of(tensor.read()) for name, tensor in source.tensors.items()}
        source.moments()
    except Problem as problem:
        check_words(problem)
        return None
    return tensors, source.config


def check_words(problem: Problem) -> None:
    """A refusal says what is wrong, with a documented exit code."""
    assert problem.what, "a refusal without words"
    assert problem.exit_code in CODES, f"exit code {problem.exit_code}"


def look(path: Path, config: dict[str, Any]) -> None:
    """inspect must always tell something."""
    report = bridge.inspect(path, config=config)
    assert report.readable or report.problems, "inspect says nothing of what it cannot read"
    json.dumps(report)


def attempt(number: int, case: fuzz_corpus.Case, path: Path, sandbox: Path) -> str:
    """One changed input; "refused" or "accepted". Raises whatever is wrong."""
    # Orbax takes ten times as long as the others: it is looked at every other time.
    slow = any(path.rglob("_METADATA")) if path.is_dir() else False
    if not slow or number % 2:
        look(path, case.config)
    if slow and number % 2:
        return "inspected"
    found = read(path, case.config)
    if found is None:
        return "refused"
    if case.sealed:
        assert found == (case.tensors, case.settings), "something wrong was accepted as right"
    if number % 20 == 0:
        try:
            bridge.convert(path, sandbox / "out", config=case.config)
        except Problem as problem:
            check_words(problem)
    return "accepted"


def child(seed: int, first: int, count: int, sandbox: Path) -> None:
    """Reads inputs `first` … and tells of each, as a line of JSON."""
    cases = fuzz_corpus.cases(sandbox)
    refusals = sorted((sandbox / "hostile").iterdir())
    for case in cases:  # everything is imported, and sound inputs pass
        look(case.path, case.config)
    bridge.convert(cases[0].path, sandbox / "out", force=True)
    shutil.rmtree(sandbox / "out")
    watch = Watch(sandbox)
    _limit()
    seconds = SECONDS * _slowness()
    signal.signal(signal.SIGPROF, _hang)
    held = {path: path.stat().st_size for path in sandbox.rglob("*") if path.is_file()}
    os.chdir(sandbox)
    for number in range(first, first + count):
        print(json.dumps({"at": number}), flush=True)
        rng = random.Random(f"{seed}:{number}")
        if number < len(refusals):
            case = cases[0]._replace(name="hostile", path=refusals[number], sealed=False)
            what, undo = refusals[number].name, lambda: None
        elif rng.random() < 0.1:
            chosen = rng.choice(refusals)
            case = cases[0]._replace(name="hostile", path=chosen, sealed=False)
            what, undo = mutate(chosen, rng)
        else:
            case = rng.choice(cases)
            what, undo = mutate(case.path, rng)
        if case.path.is_file() and what.startswith("_zipped"):
            case = case._replace(sealed=False)  # the checksums fit
        told = {"at": number, "case": case.name, "change": what}
        watch.on, watch.seen = True, []
        # Time of the processor: the machine may be busy. What no signal ends, the other one does.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        faulthandler.dump_traceback_later(10 * seconds, exit=True)
        begin = time.monotonic()
        try:
            told["outcome"] = attempt(number, case, case.path, sandbox)
            if number < len(refusals):
                assert told["outcome"] == "refused", "a hostile file was accepted"
        except (Exception, Hang) as error:
            told["failure"] = f"{type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        watch.on = False
        told["seconds"] = round(time.monotonic() - begin, 2)
        undo()
        shutil.rmtree(sandbox / "out", ignore_errors=True)
        strays = [p for p in sandbox.rglob("*") if p.is_file() and p not in held]
        if watch.seen or strays:
            told["failure"] = f"{told.get('failure', '')} {watch.seen} {strays}"
        print(json.dumps(told), flush=True)


def _limit() -> None:
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))


def _slowness() -> float:
    """How many times as slow as the processor that the limit was set on; at least 1."""
    begin = time.process_time()
    exec("for i in range(1_000_000): s += i", {"s": 0})
    return max(1.0, (time.process_time() - begin) / SUMMED)


def _hang(*_: Any) -> NoReturn:
    raise Hang(f"more than {SECONDS} s, or in proportion")


def run(seed: int, first: int, count: int) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Outcomes by format, and what failed. A process that dies is a failure; the next goes on."""
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    end = first + count
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        fuzz_corpus.write(Path(corpus) / "made")
        while first < end:
            at = -1
            with tempfile.TemporaryDirectory(prefix="fuzz-") as sandbox:
                shutil.copytree(Path(corpus) / "made", sandbox, dirs_exist_ok=True)
                words = ["--child", sandbox, "--first", str(first), "--count", str(end - first)]
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.bridge.fuzz", "--seed", str(seed), *words],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.startswith("{"):
                        continue
                    told = json.loads(line)
                    at = told["at"]
                    if "case" in told:
                        outcomes[f"{told['case']}: {told.get('outcome', 'FAILED')}"] += 1
                        if "failure" in told:
                            failures.append(told)
                            print(json.dumps(told), file=sys.stderr, flush=True)
                        first = at + 1
                        if first % 1000 == 0:
                            print(f"{first} inputs", file=sys.stderr, flush=True)
                if process.wait() != 0:
                    if at < 0:
                        raise RuntimeError("the process that reads cannot begin")
                    failures.append(
                        {"at": at, "failure": f"the process ended: {process.returncode}"}
                    )
                    print(json.dumps(failures[-1]), file=sys.stderr, flush=True)
                    first = at + 1
    return outcomes, failures


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        with in_this_process():
            child(options.seed, options.first, options.count, options.child.resolve())
        return 0
    outcomes, failures = run(options.seed, options.first, options.count)
    for name, number in sorted(outcomes.items()):
        print(f"{number:6}  {name}")
    print(f"{sum(outcomes.values())} inputs, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
