"""The verbs push and pull. Heavy imports wait until a verb really runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxmodels.cli import emit, parse, say, show
from jaxmodels.errors import DONE


@dataclass(frozen=True)
class Push:
    """Publish a model directory on the Hugging Face hub, after its digests were checked.

    The token comes from HF_TOKEN or `hf auth login`. Exit code 8: a digest is wrong; 9: the
    network or the token.
    """

    dir: Positional[Annotated[Path, arg(metavar="DIR")]]
    """Model directory (what `convert` writes) or another known checkpoint folder."""
    to: Positional[Annotated[str, arg(metavar="hf://OWNER/NAME")]]
    """The repository; made when there is none."""
    revision: str | None = None
    """The branch; made when there is none. By default main."""
    table: Path | None = None
    """A Markdown file (`jaxmodels eval --table`) to put into the model card that is published."""
    private: bool = False
    """Make a new repository private."""
    force: bool = False
    """Replace what the repository holds, in one commit; its history keeps it."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Pull:
    """Fetch a checkpoint from the Hugging Face hub: whole and checked, or not at all.

    Takes data only, and names what it left out. Exit code 6: DIR exists; 8: a digest is wrong;
    9: the network or the token.
    """

    source: Positional[Annotated[str, arg(metavar="hf://OWNER/NAME")]]
    """The repository."""
    dir: Positional[Annotated[Path, arg(metavar="DIR")]]
    """The folder to create."""
    revision: str | None = None
    """Branch, tag or commit; by default main."""
    force: bool = False
    """Replace what is at DIR, once the new one is complete."""
    json: bool = False
    """Print one JSON object."""


def push_main(argv: list[str]) -> int:
    """Runs `jaxmodels push`."""
    options = parse(Push, argv, "push")
    from bridge.hub.push import push

    report = push(
        options.dir, options.to, options.revision, options.private, options.force, options.table
    )
    for name in report.left_out:
        say(f"left out: {name}")
    if options.json:
        emit(report)
        return DONE
    show(f"{report.url}: {len(report.files)} files, {report.bytes:,} bytes")
    if report.removed:
        show(f"removed there: {', '.join(report.removed)}")
    show(f"fetch it:  jaxmodels pull {options.to} DIR")
    return DONE


def pull_main(argv: list[str]) -> int:
    """Runs `jaxmodels pull`."""
    options = parse(Pull, argv, "pull")
    from bridge.hub.pull import pull

    report = pull(options.source, options.dir, options.revision, options.force)
    for name in report.left_out:
        say(f"left out: {name}")
    if any(name.endswith(".py") or " in " in name for name in report.left_out):
        say("code is not taken; `jaxmodels convert` writes a model directory with our own")
    if options.json:
        emit(report)
        return DONE
    digests = "digests right" if report.digests_ok else "no manifest to check it by"
    show(
        f"{report.output}: {report.format or 'not a checkpoint of a known format'}, "
        f"{len(report.files)} files, {report.bytes:,} bytes; {digests}"
    )
    if report.format == "onnx":
        show("next: onnxruntime; README.md has the graphs' inputs and outputs")
    else:
        show(f"next: jaxmodels inspect {report.output}")
    return DONE
