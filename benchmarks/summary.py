"""The newest results as Markdown and as a plot: `python -m benchmarks.summary [--write]`.

The tables of docs/speed.md and the short one of README.md are its output, not written by hand.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import latest
from benchmarks.plan import summary_line
from benchmarks.records import read
from jaxmodels.__main__ import guarded
from jaxmodels.cli import parse, say
from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.reporting.pictures import defaults

OURS = "jaxmodels"
README = Path(__file__).parents[1] / "README.md"
PAGE = README.parent / "docs" / "speed.md"
FOLDER = Path(__file__).with_name("results")
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
PLOT = "speed.svg"

# The loop of `train` with a trivial model, and its cost to the host.
HOST = ["a step of `train`, of a trivial model", "ms", "beyond its computation, ms"]

Record = dict[str, Any]

BRIEF = ("step", "forward")  # the suites in README's table

# Suites whose contestants do the same work → the title of a case.
RACES: dict[str, Callable[[Record], str]] = {
    "step": lambda r: f"train step, {r['case']}, batch {r['settings']['batch']}{_dtype(r)}",
    "forward": lambda r: f"features, {r['case']}, batch {r['settings']['batch']}{_dtype(r)}",
    "decode": lambda r: f"{r['settings']['new_tokens']} new tokens, {r['case']}",
    "ternary": lambda r: f"ternary layer, {r['case']}, {r['settings']['times']} calls",
    "data": lambda r: str(r["case"]),
    "bridge": lambda r: f"convert, {r['case']}",
}


@dataclass(frozen=True)
class Summary:
    """Print the newest results as Markdown."""

    results: Path = FOLDER
    """Folder of the records."""
    write: bool = False
    """Write the tables between the markers of both pages, and the plot beside the records."""
    page: Path = PAGE
    """The page with all tables."""
    readme: Path = README
    """The page with the short table."""


def main(argv: list[str]) -> int:
    """Prints the summary, or writes it."""
    options = parse(Summary, argv, "bench summary")
    records = read(options.results)
    if not options.write:
        print(markdown(records))
        return 0
    pages = {options.page: markdown(records), options.readme: brief(records)}
    texts = {path: placed(path.read_text(encoding="utf-8"), pages[path]) for path in pages}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    plot(records, options.results / PLOT)
    say(f"written to {', '.join(map(str, [*pages, options.results / PLOT]))}")
    return 0


def placed(text: str, table: str) -> str:
    """The text with the table between its markers.

    Raises:
        Problem: (usage) the markers are not there once each and in order.
    """
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended) or BEGIN in rest or END in before + after:
        raise Problem(
            f"{BEGIN} and {END} must be in the text once each",
            fix="put each on its own line, around the place of the table",
            exit_code=USAGE,
        )
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def markdown(records: Sequence[Record]) -> str:
    """Tables of the newest record of each measurement, by machine in order of appearance."""
    machines = _newest(records)
    parts = [part for machine, newest in machines.items() for part in _sections(machine, newest)]
    if not any(_accelerated(record) for record in records):
        parts.append("No record was made on a GPU or a TPU yet, so there is no table of one.")
    return "\n\n".join(parts)


def brief(records: Sequence[Record]) -> str:
    """One table of the machine with most results: models of real size against the fastest other."""
    tables = []
    for machine, newest in _newest(records).items():
        raced = [r for r in newest if r["suite"] in BRIEF and ":tiny" not in r["case"]]
        raced.sort(key=lambda r: BRIEF.index(r["suite"]))
        if rows := [row for record in raced if (row := _race(record, newest))]:
            rows = [[*row[:2], *(cell.partition(";")[0] for cell in row[2:])] for row in rows]
            table = _table(["", OURS, "the fastest other", "times as fast"], rows)
            tables.append((len(rows), f"{machine}; {_origin(raced)}:\n\n{table}"))
    return max(tables, default=(0, ""))[1]


def _newest(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Machine → its newest record of each measurement."""
    machines = dict.fromkeys(_machine(record) for record in records)
    return {
        machine: latest(one for one in records if _machine(one) == machine) for machine in machines
    }


def _sections(machine: str, records: list[Record]) -> list[str]:
    order = list(RACES)
    # Greedy decoding represents both: sampling takes peers even longer. The records have both.
    raced = [r for r in records if r["suite"] in RACES and not r["case"].endswith(" sampled")]
    raced.sort(key=lambda r: order.index(r["suite"]))
    rows = [row for record in raced if (row := _race(record, records))]
    parts = []
    if rows:
        head = ["", OURS, "others in the same run", "times as fast"]
        parts += [f"{machine}; {_origin(raced)}:", _table(head, rows)]
    if host := [_host(record) for record in records if _is(record, "host", "loop")]:
        parts.append(_table(HOST, host))
    if learned := [_learned(record) for record in records if record["suite"] == "quality"]:
        parts.append(_table(["after a fixed budget", "steps", "validation loss"], learned))
    plans = [record for record in records if record.get("expected_mfu")]
    if plans:
        title = (
            "Compiled for TPUs that were not there (by the compiler's model of the chip, no clock):"
        )
        parts += [title, "\n".join(f"- {summary_line(record)}" for record in plans)]
    return parts


def _race(record: Record, records: Sequence[Record]) -> list[str] | None:
    """A row of our record and the others of its run, the fastest first."""
    ours = record["contestant"].startswith(OURS) and record["suite"] in RACES
    ratios = {
        peer: ratio
        for peer, ratio in record.get("times_as_fast_as", {}).items()
        if not peer.startswith(OURS)
    }
    if not ours or not ratios:
        return None
    peers = sorted(ratios, key=lambda name: ratios[name])
    medians = {
        peer: next(one["median"] for one in records if _same_run(one, record, peer))
        for peer in peers
    }
    name = RACES[record["suite"]](record)
    variant = record["contestant"].removeprefix(OURS).strip(" ,")
    name += f" ({variant})" if variant else ""
    others = "; ".join(f"{peer} {_ms(medians[peer])}" for peer in peers)
    faster = "; ".join(f"{ratios[peer]:.2f}" for peer in peers)
    return [name, _ms(record["median"]), others, faster]


def _same_run(one: Record, record: Record, contestant: str) -> bool:
    same = all(one[name] == record[name] for name in ("suite", "case", "date"))
    return same and bool(one["contestant"] == contestant)


def _is(record: Record, suite: str, contestant: str) -> bool:
    return (record["suite"], record["contestant"]) == (suite, contestant)


def _host(record: Record) -> list[str]:
    return [record["case"], f"{record['median']:.2f}", f"{record['overhead_ms']:.2f}"]


def _learned(record: Record) -> list[str]:
    steps = f"{record['settings']['steps']:,}"
    return [record["case"], steps, f"{record['median']:.3f} {record['unit']}"]


def _dtype(record: Record) -> str:
    dtype = record["settings"]["dtype"]
    return "" if dtype == "float32" else f", {dtype}"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _machine(record: Record) -> str:
    machine = record["machine"]
    devices = [one for one in machine["devices"] if not one.startswith("cpu")]
    cpu = f"{machine['cores']} cores of {machine['cpu']}"
    return f"{', '.join(devices)}, {cpu}" if devices else cpu


def _accelerated(record: Record) -> bool:
    return any(not device.startswith("cpu") for device in record["machine"]["devices"])


def _origin(records: Sequence[Record]) -> str:
    """Versions and days of records."""
    versions = {
        (name, record["versions"][name])
        for record in records
        for name in ("jax", "torch", "transformers")
        if name in record["versions"]
    }
    days = sorted({record["date"][:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{', '.join(' '.join(one) for one in sorted(versions))}; {when}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def plot(records: Sequence[Record], path: Path) -> None:
    """Bars of our speed relative to the fastest other, as SVG; deterministic."""
    with defaults():
        _bars(records).savefig(path, format="svg", metadata={"Date": None})


def _bars(records: Sequence[Record]) -> Any:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "jaxmodels"
    newest = latest(records)
    rows = [row for record in newest if (row := _race(record, newest))]
    names = [f"{row[0]}\nagainst {row[2].partition(';')[0]}" for row in rows]
    values = [float(row[3].partition(";")[0]) for row in rows]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(names, values, color="#4477aa")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set(xlabel="times as fast as the fastest other in the same run", xscale="log")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    return figure


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
