"""The collectives of a compiled program, read off its text."""

import re
from dataclasses import dataclass
from math import prod

from jaxmodels.runtime.planning.groups import members
from jaxmodels.runtime.planning.program import (
    CALLED,
    computations,
    definitions,
    estimate,
    loop_body,
    name_of,
    runs,
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BYTES = {"pred": 1, "token": 0} | {f"{kind}{n}": n // 8 for kind in "su" for n in (8, 16, 32, 64)}
_BYTES |= {"s4": 1, "u4": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}

_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?[\])}]) ([a-z][a-z\-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[sufc]\d+|bf16|f8\w+)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Collective:
    """One collective operation."""

    kind: str
    count: int
    """How often a step runs it: the product of the trip counts of its loops."""
    bytes: int
    """Bytes of its full result on one device, or of its operands if they are larger."""
    group: int
    """Number of devices in a group."""
    beside: int = 0
    """Cycles (nanoseconds on a GPU) of other work that the compiler has scheduled during a run."""
    cycles: int | None = None
    """Cycles (nanoseconds) of a run by the compiler's estimate; None if it has none."""
    devices: tuple[int, ...] = ()
    """The devices of a group; the first ones if they are not known."""

    @property
    def members(self) -> tuple[int, ...]:
        """The devices of a group."""
        return self.devices or tuple(range(self.group))

    @property
    def sent(self) -> float:
        """Lower bound of the bytes that a device sends each time: those of a ring algorithm."""
        share = (self.group - 1) / self.group
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        return self.bytes * (1.0 if self.kind.startswith("collective") else share)


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective operation of a compiled module, with how often it runs.

    Where XLA overlaps a collective with computation its text has it several times (start and done,
    or in each fusion of a series); these share a channel and count once. A loop of unknown trip
    count counts once.

    Args:
        text: the module, by `Compiled.as_text()`.
        devices: number of devices, the group of a collective that names none.
    """
    bodies, entry = computations(text)
    beside, times = cycles_beside(bodies, entry), runs(bodies, entry)
    found: dict[object, Collective] = {}
    for name in times:
        lines = definitions(bodies[name])
        for line in bodies[name]:
            if not (kind := collective(line)):
                continue
            group = members(line, devices)
            if len(group) < 2:
                continue
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            channel = _CHANNEL.search(line)
            work = beside.get(channel[1], 0) if channel else 0
            size = _size(kind, line, lines, len(group))
            key = channel[1] if channel else line
            found[key] = Collective(
                kind, times[name], size, len(group), work, estimate(line), group
            )
    return list(found.values())


def collective(line: str) -> str:
    """The kind of the collective that a line starts; empty if it starts none."""
    operation = _OPERATION.match(line)
    kind = operation[2].removesuffix("-start") if operation else ""
    return kind if kind in KINDS else ""


def cycles_beside(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Channel of a collective → cycles (nanoseconds) of the work that runs while it does.

    A collective that is part of fusions runs beside their other work; one that is written as
    start and done, beside what is scheduled between. Any other one stops the device.
    """
    found: dict[str, int] = {}
    scheduled = [entry]
    while scheduled:
        clock = 0
        begun: dict[str, tuple[int, set[str]]] = {}
        for line in bodies.get(scheduled.pop(), []):
            cycles = 0 if collective(line) else estimate(line) or 0
            operation = _OPERATION.match(line)
            if operation and operation[2].endswith("-start"):
                begun[name_of(line)] = clock, _channels(line, bodies)
            elif operation and operation[2].endswith("-done"):
                start = operation[3].partition(")")[0].split(" ")[-1].lstrip("%")
                since, channels = begun.get(start, (clock, set()))
                found |= dict.fromkeys(channels, clock - since)
            elif operation and operation[2] == "fusion":
                for channel in _channels(line, bodies):
                    found[channel] = found.get(channel, 0) + cycles
            if body := loop_body(line):
                scheduled.append(body)
            clock += cycles
    return found


def _channels(line: str, bodies: dict[str, list[str]]) -> set[str]:
    """The channels of the collectives in a line and in the computations that it calls."""
    found = set(_CHANNEL.findall(line))
    for called in CALLED.findall(line):
        for inner in bodies.get(called, []):
            if " fusion(" in inner or _CHANNEL.search(inner):
                found |= _channels(inner, bodies)
    return found


def summary(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind → the number of collectives of a step, and the bytes that a device sends for them."""
    rows: dict[str, dict[str, int]] = {}
    for one in found:
        row = rows.setdefault(one.kind, {"count": 0, "bytes": 0})
        row["count"] += one.count
        row["bytes"] += round(one.count * one.sent)
    return dict(sorted(rows.items()))


def _size(kind: str, line: str, lines: dict[str, str], group: int) -> int:
    """Bytes of the full arrays of a collective: of all its operands, gathered if it gathers.

    Where an operand is not defined among the lines, the largest array that the line names.
    """
    operation = _OPERATION.match(line)
    assert operation
    named = operation[3].partition(")")[0]
    operands = [lines.get(word) for word in re.findall(r"%([\w.\-]+)", named)]
    if operands and None not in operands:
        results = (one.partition(" = ")[2] for one in operands if one)
        # An operand is one array, which its line names first.
        size = sum(_bytes(*found.groups()) for one in results if (found := _SHAPE.search(one)))
        return size * (group if kind == "all-gather" else 1)
    sizes = [_bytes(*found) for found in _SHAPE.findall(f"{operation[1]} {named}")]
    return max(sizes, default=0)


def _bytes(dtype: str, dims: str) -> int:
    return prod(int(n) for n in dims.split(",") if n) * _BYTES.get(dtype, 1)
