"""The collectives of a compiled program, read off its text."""

import re
from dataclasses import dataclass
from math import prod

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

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?[\])}]) ([a-z][a-z\-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[sufc]\d+|bf16|f8\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation|called_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_LESS = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=(L[TE])")
_INDEX = re.compile(r"get-tuple-element\(.*index=(\d+)")
_CONSTANT = re.compile(r"= [su](?:32|64)\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
CYCLES = re.compile(r'"?estimated_cycles"?:"?(\d+)')


@dataclass(frozen=True)
class Collective:
    """One collective operation."""

    kind: str
    count: int
    """How often a step runs it: the product of the trip counts of its loops."""
    bytes: int
    """Bytes of its full result on one device, or of its operand if that is larger."""
    group: int
    """Number of devices in a group."""
    beside: int = 0
    """Cycles of other work that the compiler has scheduled during each run."""

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
    beside = cycles_beside(bodies, entry)
    times: dict[str, int] = {}
    _walk(entry, 1, bodies, times)
    found: dict[object, Collective] = {}
    for name, lines in bodies.items():
        for line in lines:
            operation = _OPERATION.match(line)
            if not operation or name not in times:
                continue
            kind = operation[2].removesuffix("-start")
            if kind not in KINDS:
                continue
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            size = max(_largest(operation[1]), _largest(operation[3].partition(")")[0]))
            channel = _CHANNEL.search(line)
            group = _group(line, devices)
            if group > 1:
                key = channel[1] if channel else line
                work = beside.get(channel[1], 0) if channel else 0
                found[key] = Collective(kind, times[name], size, group, work)
    return list(found.values())


def cycles_beside(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Channel of a collective → cycles of the work that runs while it does.

    A collective that is part of fusions runs beside their other work; one that is written as
    start and done, beside what is scheduled between. Any other one stops the device.
    """
    found: dict[str, int] = {}
    scheduled = [entry]
    while scheduled:
        clock = 0
        begun: dict[str, tuple[int, set[str]]] = {}
        for line in bodies.get(scheduled.pop(), []):
            cycles = int(known[1]) if (known := CYCLES.search(line)) else 0
            operation = _OPERATION.match(line)
            name = line.strip().removeprefix("ROOT ").partition(" = ")[0].lstrip("%")
            if operation and operation[2].endswith("-start"):
                begun[name] = clock, _channels(line, bodies)
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
    for called in _CALLED.findall(line):
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


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name → lines of every computation, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and " = " in line:
            current.append(line)
    return bodies, entry


def _walk(name: str, times: int, bodies: dict[str, list[str]], found: dict[str, int]) -> None:
    """Records how often a computation and its callees run; of several callers the most counts."""
    if found.get(name, 0) >= times or name not in bodies:
        return
    found[name] = times
    for line in bodies[name]:
        again = times * trips(line, bodies) if " while(" in line else times
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip(" %") for branch in branches.split(",")]
        for one in called:
            _walk(one, again, bodies, found)


def loop_body(line: str) -> str:
    """The computation that a while loop runs; empty if the line is no while loop."""
    found = _BODY.search(line) if " while(" in line else None
    return found[1] if found else ""


def trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Trip count of a while loop: XLA's annotation, or the limit of its counter, which starts at 0;
    1 if neither can be read."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition, body = (
        _definitions(bodies.get(found[1], [])) if (found := pattern.search(line)) else {}
        for pattern in (_CONDITION, _BODY)
    )
    compared = _LESS.search(condition.get("ROOT", ""))
    if not compared:
        return 1
    counter, limit = (condition.get(name, "") for name in compared.groups()[:2])
    index, most = _INDEX.search(counter), _CONSTANT.search(limit)
    if not index or not most:
        return 1
    last = int(most[1]) + (compared[3] == "LE")
    return max(1, -(-last // _step(body, int(index[1]))))


def _step(body: dict[str, str], index: int) -> int:
    """What an iteration adds to the counter, element `index` of the body's result."""
    returned = body.get("ROOT", "").partition(" tuple(")[2].partition(")")[0]
    names = [word.rpartition("%")[2].strip() for word in returned.split(",")]
    line = body.get(names[index], "") if index < len(names) else ""
    added = re.findall(r"%?([\w.\-]+)", line.partition(" add(")[2].partition(")")[0])
    steps = [found for name in added if (found := _CONSTANT.search(body.get(name, "")))]
    return max(int(steps[0][1]), 1) if steps else 1


def _definitions(lines: list[str]) -> dict[str, str]:
    """Name → its defining line; the computation's result is also under "ROOT"."""
    found = {}
    for line in lines:
        name = line.strip().removeprefix("ROOT ").partition(" = ")[0].lstrip("%")
        found[name] = line
        if line.lstrip().startswith("ROOT "):
            found["ROOT"] = line
    return found


def _largest(text: str) -> int:
    """Bytes of the largest array among the shapes in a text."""
    sizes = [
        prod(int(n) for n in dims.split(",") if n) * _BYTES.get(dtype, 1)
        for dtype, dims in _SHAPE.findall(text)
    ]
    return max(sizes, default=0)


def _group(line: str, devices: int) -> int:
    """Number of devices in a group, in any of XLA's notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        names = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return prod(int(part or sizes[name]) for name, part in names)
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        moved = [a != b for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1])]
        return 2 if any(moved) else 1
    return devices
