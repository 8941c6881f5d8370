"""The newest results as Markdown and as a plot: `python -m benchmarks.summary [--write]`.

The tables of docs/speed.md and the short one of README.md are its output, not written by hand.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    """Write the tables between the markers of both pages, and the charts beside the records."""
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
    charts = plot(records, options.results)
    say(f"written to {', '.join(map(str, (*pages, *charts)))}")
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
        parts.append(
            "No record was made on a GPU or a TPU yet, so there is no table of one; on a GPU "
            "`bash benchmarks/gpu.sh` makes it in six minutes."
        )
    return "\n\n".join(parts)


def brief(records: Sequence[Record]) -> str:
    """A short table of the chart's machine: models of real size against the fastest other."""
    machine, newest = _charted(records)
    raced = [r for r in newest if r["suite"] in BRIEF and ":tiny" not in r["case"]]
    raced.sort(key=lambda r: BRIEF.index(r["suite"]))
    rows = [row for record in raced if (row := _race(record, newest))]
    rows = [[*row[:2], *(cell.partition(";")[0] for cell in row[2:])] for row in rows]
    if not rows:
        return ""
    table = _table(["", OURS, "the fastest other", "times as fast"], rows)
    return f"{machine}; {_origin(raced)}:\n\n{table}"


def _charted(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """The machine with the most kinds of races, and its newest records."""
    kinds = {name: len({bar.group for bar in _bars(new)}) for name, new in _newest(records).items()}
    machine = max(kinds, key=lambda name: kinds[name])
    return machine, _newest(records)[machine]


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
            "Compiled for TPUs and GPUs that were not there (by the compiler's model of the chip, "
            "not measured):"
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


def plot(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draws speed-light.svg and speed-dark.svg: our speed relative to the fastest other, on one
    machine; deterministic."""
    machine, newest = _charted(records)
    paths = []
    for name, (ink, faint) in THEMES.items():
        with defaults():
            from matplotlib import rcParams

            rcParams["svg.hashsalt"] = "jaxmodels"
            rcParams["svg.fonttype"] = "none"
            for part in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"):
                rcParams[part] = ink
            figure = _chart(machine, _bars(newest), ink, faint)
            paths.append(folder / f"speed-{name}.svg")
            figure.savefig(paths[-1], format="svg", metadata={"Date": None}, transparent=True)
    return paths


THEMES = {"light": ("#1f2328", "#d0d7de"), "dark": ("#e6edf3", "#3d444d")}
"""Colours of text and of lines, for GitHub's two backgrounds."""

GROUPS = {
    "step": "training: a step",
    "forward": "image features",
    "decode": "generating text",
    "ternary": "ternary layers",
    "data": "data",
    "bridge": "converting checkpoints",
}


NO_PEERS = ("file copy",)
"""What only shows how fast the machine can be."""


class Bar(NamedTuple):
    """One race."""

    group: str
    name: str
    ratio: float
    """To the fastest other."""
    peer: str


def _bars(records: Sequence[Record]) -> list[Bar]:
    """By group, the fastest first."""
    found = []
    for record in records:
        row = None if record["case"].endswith(" sampled") else _race(record, records)
        if row is not None:
            peers = record["times_as_fast_as"].items()
            others = [(x, peer) for peer, x in peers if not peer.startswith((OURS, *NO_PEERS))]
            name = row[0].partition(", ")[2] if ":" in row[0] else row[0]
            found.append(Bar(GROUPS[record["suite"]], name, *min(others)))
    order = list(GROUPS.values())
    return sorted(found, key=lambda bar: (order.index(bar.group), -bar.ratio))


def _chart(machine: str, bars: Sequence[Bar], ink: str, faint: str) -> Any:
    from matplotlib.figure import Figure

    places, labels, place = [], [], 0.0
    for bar, before in zip(bars, [None, *bars], strict=False):
        if before is None or bar.group != before.group:
            place += 1.2
            labels.append((place - 0.8, bar.group))
        places.append(place)
        place += 1
    figure = Figure(figsize=(9, 1.1 + 0.24 * place), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#4477aa" if bar.ratio >= 1 else "#cc6677" for bar in bars]
    drawn = axes.barh(places, [bar.ratio for bar in bars], color=colours, height=0.75)
    axes.bar_label(drawn, [f"{bar.ratio:.2f}× {bar.peer}" for bar in bars], padding=3, fontsize=8)
    axes.axvline(1, color=ink, linewidth=0.8)
    axes.set_yticks(places, [bar.name for bar in bars], fontsize=8)
    for at, group in labels:
        axes.annotate(group, (0, at), fontsize=9, weight="bold", va="center")
    axes.set_xlim(0, 1.35 * max(bar.ratio for bar in bars))
    axes.set_xlabel(f"times as fast as the fastest other in the same run ({machine})", fontsize=8)
    axes.set_title("jaxmodels against its peers: longer is faster", fontsize=11, loc="left")
    axes.tick_params(length=0)
    axes.set_ylim(place, 0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=faint, linewidth=0.6)
    return figure


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
