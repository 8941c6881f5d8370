"""`jaxmodels report`: a run as one HTML page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxmodels.cli import emit, parse, say
from jaxmodels.errors import CORRUPT, EXISTS, Problem
from jaxmodels.runtime.runs import rundir


@dataclass(frozen=True)
class ReportOptions:
    """Write settings, curves, samples and summary of a run into one HTML file."""

    run: Positional[Annotated[Path, arg(metavar="RUN_DIR")]]
    """The run directory; it may still be training."""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """The file to write; by default RUN_DIR/report.html. An existing report is replaced."""
    force: bool = False
    """Replace a file that is not a report."""
    json: bool = False
    """Print one JSON object on standard output."""


def main(argv: list[str]) -> int:
    """Runs the command."""
    options = parse(ReportOptions, argv, "report")
    run, out = options.run, options.out or options.run / "report.html"
    if not (run / rundir.CONFIG).is_file() or not (run / "checkpoints").is_dir():
        raise Problem(
            "this is not a run directory",
            where=str(run),
            why="it lacks the config.json and checkpoints/ of `jaxmodels train`",
            fix="give the folder that was --out of `jaxmodels train`",
            exit_code=CORRUPT,
        )
    from jaxmodels.files import naming, write_text
    from jaxmodels.runtime.reporting.page import MARK, page

    with naming(out):
        if out.exists() and not options.force and not _ours(out, MARK):
            raise Problem(
                "the output exists and is not a report",
                where=str(out),
                fix="give another -o FILE, or --force to replace it",
                exit_code=EXISTS,
            )
        content = page(run)
        write_text(out, content)
    say(f"report: {out}")
    if options.json:
        emit({"report": str(out), "bytes": len(content.encode())})
    return 0


def _ours(path: Path, mark: str) -> bool:
    """Whether a file is a report that this command wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark.encode() in file.read(1000)
