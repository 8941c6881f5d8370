"""The verb `jaxmodels bench`: suites of measurements against named peers and earlier results."""

import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from benchmarks.machine import RESULTS
from jaxmodels.cli import emit, fail, parse, say
from jaxmodels.errors import DONE, INTERNAL, USAGE, Problem
from jaxmodels.runtime import platform

# suite → (module with `main(words)`, RUNS and QUICK, what it measures)
SUITES = {
    "step": ("benchmarks.step", "train steps against PyTorch, eager and compiled"),
    "host": ("benchmarks.host", "what a step costs the host besides its computation"),
    "forward": ("benchmarks.forward", "features of images against transformers"),
    "decode": ("benchmarks.decode", "prompt and new tokens against transformers' generate"),
    "ternary": ("benchmarks.ternary", "a layer of ternary weights against transformers' BitNet"),
    "data": ("benchmarks.data", "batches and tokenising against numpy and tiktoken"),
    "bridge": ("benchmarks.bridge", "converting and loading checkpoints"),
    "memory": ("benchmarks.memory", "memory that chunking saves in a train step"),
    "objectives": ("benchmarks.objectives", "wigip's two objectives after equal time"),
    "quality": ("benchmarks.quality", "validation loss after a fixed budget of steps"),
    "scenes": ("benchmarks.scenes", "what bitgen:tiny learns from drawn scenes in minutes"),
    "questions": ("benchmarks.questions", "what a bitgen answers about drawn scenes"),
    "pictures": ("benchmarks.pictures", "what phase 2 of wigip learns beside text, in minutes"),
    "gpu": ("benchmarks.gpu", "what one GPU reaches, against the goals and compiled PyTorch"),
    "plan": ("benchmarks.plan", "steps compiled for TPUs and GPUs: memory, bounds, traffic"),
    "scaling": ("benchmarks.scaling", "1, 2, 4 and 8 devices: traffic, strong and weak scaling"),
}

Line = Sequence[str]


@dataclass(frozen=True)
class Bench:  # noqa: D101 - ruff does not see that this is one
    __doc__ = f"""Measure, and compare with earlier measurements.

    Suites: {"; ".join(f"{name}: {what}" for name, (_, what) in SUITES.items())}.

    A single suite also takes its own options, such as: bench step --preset wikigpt:base --batch 8.
    They are listed by: bench SUITE --help.
    """

    suites: Positional[tuple[str, ...]] = ()
    """Suites to run; all by default."""
    quick: bool = False
    """Tiny sizes and few rounds: takes minutes on a laptop, to try it out."""
    out: Path = RESULTS
    """Folder whose SUITE.jsonl the results are added to."""
    compare: Path | None = None
    """Records to compare with: a .jsonl file, or a folder of them."""
    json: bool = False
    """Print one JSON object on standard output; tables go to standard error."""


@dataclass
class Results:
    """The results of the suites."""

    records: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Suite → what it lacks here."""
    failed: dict[str, str] = field(default_factory=dict)
    """Suite → what went wrong."""
    code: int = DONE


def main(argv: list[str]) -> int:
    """Runs the verb; returns 0, or the exit code of the first suite that failed."""
    named, own, rest = split(argv)
    one = len(named) == 1
    for name in named:
        _known(name)
    options = parse(Bench, [*named, *own, *(() if one else rest)], "bench")
    platform.keep_memory()  # as the verbs that compute do; in one process, peers have it too
    # Both sides may use one GPU: neither may reserve all of it at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    before = _read(options.compare)
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        outcome = run(named or tuple(SUITES), options, rest if one else ())
    found = None
    if before is not None:
        from benchmarks.compare import changes, text

        found = changes(outcome.records, before)
        if not options.json:
            print(f"\n### Compared with {options.compare}\n{text(found)}")
    if options.json:
        result = {"absent": outcome.absent, "failed": outcome.failed, "records": outcome.records}
        emit(result | ({} if found is None else {"changes": found}))
    return outcome.code


def split(argv: Sequence[str]) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The named suites, our options, and those of a suite."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    named, own, rest = tuple(argv[:count]), list[str](), list[str]()
    words = iter(argv[count:])
    for word in words:
        if word in ("--quick", "--json") or word.startswith(("--out=", "--compare=")):
            own.append(word)
        elif word in ("--out", "--compare"):
            own += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            rest.append(word)
    return named, own, rest


def run(named: Sequence[str], options: Bench, words: Line = ()) -> Results:
    """Runs suites one after the other; one that fails or cannot run does not stop the others.

    Args:
        named: names in SUITES.
        options: common to all suites.
        words: options of a single suite, for one run with these instead of its usual ones.
    """
    from jax.extend.backend import clear_backends

    from benchmarks.harness import Absent

    outcome = Results()
    for name in named:
        try:
            for line in _lines(name, options.quick, words):
                say(f"--- {' '.join((name, *line))}")
                suite = import_module(SUITES[name][0])
                clear_backends()  # each suite chooses its own threads
                outcome.records += suite.main([*line, "--out", str(options.out)])
        except Absent as absent:
            outcome.absent[name] = absent.what
            say(f"{name} is left out: {absent.what}" + (f" ({absent.fix})" if absent.fix else ""))
        except Exception as error:
            outcome.failed[name] = f"{type(error).__name__}: {error}"
            outcome.code = outcome.code or getattr(error, "exit_code", INTERNAL)
            say(f"{name} failed; its earlier results are kept, the other suites continue")
            fail(error)
    return outcome


def _lines(name: str, quick: bool, words: Line) -> Sequence[Line]:
    """The runs of a suite, a line of options each."""
    suite = import_module(SUITES[name][0])
    runs: Sequence[Line] = suite.QUICK if quick else suite.RUNS
    if not words:
        return runs
    return ([*runs[0], *words],) if quick else (words,)


def _known(name: str) -> None:
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=2)
        raise Problem(
            f"unknown suite: {name!r}",
            why=f"known: {', '.join(SUITES)}",
            fix=f"did you mean {' or '.join(near)}?" if near else "see `jaxmodels bench --help`",
            exit_code=USAGE,
        )


def _read(path: Path | None) -> list[dict[str, Any]] | None:
    """The records to compare with, read before new ones are added."""
    if path is None:
        return None
    from benchmarks.harness import read

    return read(path)
