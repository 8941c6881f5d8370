"""The text of a compiled program: its computations, loops, and what the compiler expects of a line.

The compilers write estimates of their own into it: libtpu clock cycles; XLA for GPUs times, by
models of the chip and by tables of what products and collectives took on such GPUs.
"""

import re
from math import prod

_FASTEST = 2250e12  # operations a second, B200

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation|called_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_LESS = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=(L[TE])")
_INDEX = re.compile(r"get-tuple-element\(.*index=(\d+)")
_CONSTANT = re.compile(r"= [su](?:32|64)\[\]\S* constant\((\d+)\)")
_CYCLES = re.compile(r'"?estimated_cycles"?:"?(\d+)')
_PRODUCT = re.compile(
    r"= \(?f32\[([\d,]*)\].* custom-call\(%([\w.\-]+).*\"__cublas.*"
    r'"lhs_contracting_dimensions":\[([^\]]*)\]'
)
_HALF = re.compile(r"= \(?(?:bf16|f16)\[([\d,]*)\]")
_TIME = re.compile(r'(?<="exec_time_us":)[\d.e+\-]+')
_TIMES = re.compile(r'"exec_time_us":([\d.e+\-]+),[^{}]*?"name":"([^"]*)"')


def estimate(line: str) -> int | None:
    """What the compiler expects of an operation: cycles of a TPU, nanoseconds on a GPU.

    On GPUs XLA asks several models. Tables of measurements ("sol") hold products and collectives
    only; of its other fusions, those in tiles have a model that knows the tiles.
    """
    if found := _CYCLES.search(line):
        return int(found[1])
    times = {name: float(time) for time, name in _TIMES.findall(line)}
    if "experimental-gemm-cost-model" in times:
        names = ["sol"]
    else:
        names = ["indexing-cost-model", "", "sol"]
    known = (times[name] for name in names if name in times)
    time = next(known, None)
    return None if time is None else round(1000 * time)


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
    return {name: _corrected(lines) for name, lines in bodies.items()}, entry


def _corrected(lines: list[str]) -> list[str]:
    """The lines, with plausible times of products that take 16-bit numbers to float32.

    XLA has no table of these (jax 0.10.2). It falls back on one whose sizes are bytes, and counts
    each side of the product by the 4 bytes of a result: 64 times the time. What is faster than a
    64th of the fastest GPU's peak rate is taken as it is.
    """
    if not any("__cublas" in line for line in lines):
        return lines
    known = definitions(lines)

    def slow(line: str) -> bool:
        product = _PRODUCT.search(line)
        left = product and _HALF.search(known.get(product[2], ""))
        time = _TIME.search(line)
        if not (product and left and time):
            return False
        shape = [int(size) for size in left[1].split(",")]
        inner = prod(shape[int(axis)] for axis in re.findall(r"\d+", product[3]))
        work = 2 * inner * prod(int(size) for size in product[1].split(","))
        return work / (float(time[0]) * 1e-6) < _FASTEST / 64

    return [
        _TIME.sub(lambda time: str(float(time[0]) / 64), line) if slow(line) else line
        for line in lines
    ]


def runs(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Computation → how often a step runs it; of several callers the most counts."""
    found: dict[str, int] = {}
    _walk(entry, 1, bodies, found)
    return found


def _walk(name: str, times: int, bodies: dict[str, list[str]], found: dict[str, int]) -> None:
    if found.get(name, 0) >= times or name not in bodies:
        return
    found[name] = times
    for line in bodies[name]:
        again = times * trips(line, bodies) if " while(" in line else times
        called = CALLED.findall(line)
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
        definitions(bodies.get(found[1], [])) if (found := pattern.search(line)) else {}
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


def definitions(lines: list[str]) -> dict[str, str]:
    """Name → its defining line; the computation's result is also under "ROOT"."""
    found = {}
    for line in lines:
        name = name_of(line)
        found[name] = line
        if line.lstrip().startswith("ROOT "):
            found["ROOT"] = line
    return found


def name_of(line: str) -> str:
    """The name that a line defines."""
    return line.strip().removeprefix("ROOT ").partition(" = ")[0].lstrip("%")
