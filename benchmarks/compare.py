"""Changes between two sets of records, and their significance.

Records are compared on the same processor, cores and devices only, and ratios round by round, so
that a slow phase of the machine affects neither side.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness import identity

Record = dict[str, Any]

_MACHINE = ("cpu", "cores", "devices")
_NOTED = ("isolated", "threads", "our_slices", "slices", "rounds")


def changes(new: Iterable[Record], old: Sequence[Record]) -> list[dict[str, Any]]:
    """The change of each new record since the newest old one of the same measurement.

    Records of different machines cannot be compared: then there are only `comparable`, false, and
    `why`. The change of the median is relative (0.1: a tenth more, that is slower); so is that of
    the ratio to each peer of the same run. `p`
    is the p-value of a two-sided Mann-Whitney test; None if the rounds of one were not recorded.

    Args:
        new: records; the last of each measurement is taken.
        old: records, the oldest first.
    """
    new, known = list(new), {identity(record) for record in old}
    return [
        _change(record, new, old)
        for record in latest(new)
        if identity(record) in known and "median" in record
    ]


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each measurement, in order of first appearance."""
    newest: dict[tuple[Any, ...], Record] = {}
    for record in records:
        newest[identity(record)] = record
    return list(newest.values())


def significance(one: Sequence[float] | None, other: Sequence[float] | None) -> float | None:
    """The p-value of the two-sided Mann-Whitney test; None if a sample is missing."""
    if not one or not other:
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(one, other, alternative="two-sided").pvalue)


def _change(record: Record, new: list[Record], old: Sequence[Record]) -> dict[str, Any]:
    before = [one for one in old if identity(one) == identity(record)]
    same = [one for one in before if _machine(one) == _machine(record)]
    named = {name: record[name] for name in ("suite", "case", "contestant")}
    if not same:
        where = f"{_machine(before[-1])} then, {_machine(record)} now"
        return named | {"comparable": False, "why": f"another machine: {where}"}
    earlier = same[-1]
    peers = set(record.get("times_as_fast_as", ())) & set(earlier.get("times_as_fast_as", ()))
    return named | {
        "comparable": True,
        "unit": record["unit"],
        "before": earlier["median"],
        "after": record["median"],
        "change": _relative(earlier["median"], record["median"]),
        "p": significance(earlier.get("times_ms"), record.get("times_ms")),
        "ratios": {peer: _ratio(peer, (earlier, old), (record, new)) for peer in sorted(peers)},
        "date": earlier.get("date"),
        "commit": earlier.get("commit"),
        "differs": _differences(earlier, record),
    }


def _ratio(
    peer: str, before: tuple[Record, Sequence[Record]], after: tuple[Record, Sequence[Record]]
) -> dict[str, Any]:
    """The change of the ratio to a peer, whose rounds are in the records of the same run."""
    then, now = (record["times_as_fast_as"][peer] for record, _ in (before, after))
    p = significance(
        *(_rounds(record, _peer(record, peer, run)) for record, run in (before, after))
    )
    return {"before": then, "after": now, "change": _relative(then, now), "p": p}


def _peer(record: Record, name: str, records: Sequence[Record]) -> Record:
    """The record of a peer in the same run as this record; empty if there is none."""
    run = ("suite", "case", "date")
    same = [one for one in records if all(one.get(k) == record.get(k) for k in run)]
    return next((one for one in reversed(same) if one["contestant"] == name), {})


def _rounds(record: Record, peer: Record) -> list[float]:
    ours, theirs = record.get("times_ms", ()), peer.get("times_ms", ())
    return [their / our for our, their in zip(ours, theirs, strict=False) if our]


def _relative(before: float, after: float) -> float | None:
    return after / before - 1 if before else None


def _machine(record: Record) -> str:
    machine = record.get("machine", {})
    parts = (machine.get(name) for name in _MACHINE)
    return ", ".join(str(part) for part in parts)


def _differences(one: Record, other: Record) -> list[str]:
    """Versions and settings that differ, and may explain a change."""
    found = []
    for group, names in (("versions", None), ("settings", _NOTED)):
        before, after = one.get(group, {}), other.get(group, {})
        for name in names or sorted({*before, *after}):
            if before.get(name) != after.get(name):
                found.append(f"{name} {before.get(name)} → {after.get(name)}")
    return found


def text(found: Sequence[dict[str, Any]]) -> str:
    """The changes as readable lines."""
    if not found:
        return "nothing to compare: there is no earlier record of these measurements"
    return "\n".join(line for change in found for line in _lines(change))


def _lines(change: dict[str, Any]) -> list[str]:
    name = f"{change['suite']}, {change['case']}, {change['contestant']}"
    if not change["comparable"]:
        return [f"{name}: not comparable, {change['why']}"]
    p = change["p"]
    chance = "rounds of one not recorded" if p is None else f"p = {p:.2g}"
    lines = [
        f"{name}: {change['before']:,.4g} → {change['after']:,.4g} {change['unit']}"
        f" ({_percent(change['change'])}, {chance})"
    ]
    lines += [
        f"    times as fast as {peer}: {ratio['before']:.2f} → {ratio['after']:.2f}"
        f" ({_percent(ratio['change'])}{_chance(ratio)})"
        for peer, ratio in change["ratios"].items()
    ]
    if change["differs"]:
        lines.append(f"    different: {', '.join(change['differs'])}")
    return lines


def _percent(change: float | None) -> str:
    return "from 0" if change is None else f"{100 * change:+.1f}%"


def _chance(ratio: dict[str, Any]) -> str:
    p = ratio.get("p")
    return "" if p is None else f", p = {p:.2g}"
