"""Where the compiler expects the time of a step to go, read off the compiled text (`program`).

Its estimates are a model, not a clock: of a TPU it knows layouts, the matrix unit and memory, of a
GPU also collectives; of neither what kernels cost (Pallas, cuDNN), nor of a GPU what launches do.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from jaxmodels.runtime.planning import kernels, program
from jaxmodels.runtime.planning.hlo import collective

_RESULT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\(")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_OURS = re.compile(r"(?:^|/)((?:jaxmodels|benchmarks|examples)/.*\.py)$")


class Operation(NamedTuple):
    """One kind of operation of a program, as often as a step runs it."""

    cycles: int
    """Of all runs together; on a GPU, nanoseconds."""
    runs: int
    kind: str
    """Of a kernel its name; else XLA's without its number: `fusion`, `copy`, …"""
    shape: str
    """Dtype and shape of the result."""
    source: str
    """The line of the model that it was traced from, and of the layer that the model called; empty
    where XLA kept none."""


def estimated(text: str) -> int:
    """Clock cycles that the compiler expects of the whole program; 0 where it gives none.

    What is in a loop counts as often as it runs. Kernels and collectives count nothing.

    Args:
        text: the module as `Compiled.as_text()` gives it.
    """
    return sum(cycles * times for _, cycles, times in _lines(*program.computations(text)))


def operations(text: str) -> list[Operation]:
    """The program's operations, those that take most cycles first.

    Args:
        text: the module as `Compiled.as_text()` gives it.
    """
    sources = _sources(text)
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for line, cycles, times in _lines(*program.computations(text)):
        if not (result := _RESULT.match(line)):
            continue
        frame = _FRAME.search(line)
        kind = kernels.kernel(line) or re.sub(r"[.\d]+$", "", result[1])
        shape = _LAYOUT.sub("", result[2])
        found = sums[kind, shape, sources.get(frame[1], "") if frame else ""]
        found[0] += cycles * times
        found[1] += times
    rows = [Operation(c, n, *where) for where, (c, n) in sums.items()]
    return sorted(rows, key=lambda row: -row.cycles)


def _lines(bodies: dict[str, list[str]], entry: str) -> Iterator[tuple[str, int, int]]:
    """(line, cycles, runs) of each operation with an estimate, loops entered."""
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for line in bodies.get(name, []):
            cycles = program.estimate(line)
            if cycles is not None and not collective(line):
                yield line, cycles, times
            if body := program.loop_body(line):
                waiting.append((body, times * program.trips(line, bodies)))


def _sources(text: str) -> dict[str, str]:
    """Id of a stack frame → the innermost line of a model, and of a layer, that led to it."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.M))
    places = {
        number: (files.get(file, ""), line)
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", _section(text, "FileLocations"), re.M
        )
    }
    # Frames are counted from 1 on, and the parent's number is written one larger; 1 is none.
    frames = {
        int(number): (place, int(parent) - 1)
        for number, place, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)",
            _section(text, "StackFrames"),
            re.M,
        )
    }
    found = {}
    for number in frames:
        at, model, layer = number, "", ""
        while at in frames and not model:
            place, at = frames[at]
            file, line = places.get(place, ("", ""))
            if ours := _OURS.search(file):
                if "/layers/" in ours[1] or "/runtime/" in ours[1]:
                    layer = layer or f"{ours[1]}:{line}"
                else:
                    model = f"{ours[1]}:{line}"
        lines = (each.removeprefix("jaxmodels/") for each in (model, layer) if each)
        found[str(number)] = " > ".join(lines)
    return found


def _section(text: str, name: str) -> str:
    """One of the tables at the head of a module's text."""
    return text.partition(f"\n{name}\n")[2].partition("\n\n")[0]
