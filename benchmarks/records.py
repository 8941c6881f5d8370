"""Records of measurements on disk: a JSON line each, a file for each suite."""

import json
from pathlib import Path
from typing import Any

from jaxmodels.errors import CORRUPT, USAGE, Problem

# Settings that distinguish measurements of the same case.
_SIZES = ("batch", "dtype", "context", "prompt", "new_tokens", "steps")


class Absent(Problem):
    """A suite cannot run here because something that it needs is missing."""

    def __init__(self, what: str, fix: str = ""):
        super().__init__(what, fix=fix, exit_code=USAGE)


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a record measures; records of equal identity can be compared."""
    settings = record.get("settings", {})
    sizes = (str(settings.get(name)) for name in _SIZES)
    return (record["suite"], record["case"], record["contestant"], *sizes)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, or of every .jsonl file in a folder, the oldest first.

    Raises:
        Problem: (corrupt) there is none, or a line is not a record.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    records = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                identity(record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise Problem(
                    "this line is not a record of a measurement",
                    where=f"{file}:{number}",
                    why=repr(error),
                    exit_code=CORRUPT,
                ) from error
            records.append(record)
    if not records:
        raise Problem("there are no records of measurements", where=str(path), exit_code=CORRUPT)
    return sorted(records, key=lambda record: str(record.get("date")))


def save(records: list[dict[str, Any]], folder: Path) -> Path:
    """Appends records to the suite's file, one JSON line each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{records[0]['suite']}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def table(records: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table of one case; the last column is the first contestant's speed over each.

    Args:
        records: of one case, ours first.
        columns: field → heading of further columns.
    """
    ours = records[0]["times_as_fast_as"]
    names = [records[0]["contestant"], "median ms", "min", "max", *columns.values()]
    rows = [["", *names[1:], f"{names[0]} is … times as fast"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for record in records:
        times = [f"{record[name]:,.1f}" for name in ("median", "min", "max")]
        others = [f"{record[name]:,.4g}" if record[name] else "" for name in columns]
        against = ours.get(record["contestant"])
        faster = "" if against is None else f"{against:.2f}"
        rows.append([record["contestant"], *times, *others, faster])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
