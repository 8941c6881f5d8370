"""`jaxmodels memory`: what a bitgen remembers. Written, read, forgotten and listed in a model
directory, whose memory it changes and nothing else."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxmodels.cli import emit, merge_repeated, parse, show
from jaxmodels.errors import USAGE, Problem

Directory = Positional[Annotated[Path, arg(metavar="PATH")]]


@dataclass(frozen=True)
class Write:
    """Write texts, images, or images with captions into the memory of the model in PATH."""

    path: Directory
    """A model directory, as `convert` writes it."""
    text: Annotated[tuple[str, ...], arg(metavar="TEXT")] = ()
    """A text to remember; may be repeated."""
    image: Annotated[tuple[Path, ...], arg(metavar="FILE")] = ()
    """An image to remember; may be repeated. Without --caption the model describes it itself."""
    caption: Annotated[tuple[str, ...], arg(metavar="TEXT")] = ()
    """What is in the image; one for each --image, in their order."""
    file: Path | None = None
    """JSON lines, each {"text": …}, {"image": …} or {"image": …, "caption": …}, and "source" if it
    is another than this line or image."""
    source: str | None = None
    """Where it comes from; by default the image's path, the line of --file, or the command line."""
    data: str | None = None
    """Data whose held-out pairs tell how near a query must be; see `memory read`. By default those
    that the model was trained on, if they are drawn shapes."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Read:
    """Ask the memory of the model in PATH for what is nearest to a text or an image.

    Answers "never written" if nothing near enough was written. How near that is was measured on
    held-out pairs: `memory write --data`.
    """

    path: Directory
    """A model directory."""
    text: str | None = None
    """The text to ask by."""
    image: Path | None = None
    """The image to ask by."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Forget:
    """Take items out of the memory of the model in PATH, as if they had never been written."""

    path: Directory
    """A model directory."""
    items: Positional[Annotated[tuple[int, ...], arg(metavar="ITEM")]] = ()
    """Numbers of items, as `memory list` shows them."""
    source: str | None = None
    """Forget all that came from there."""
    all: bool = False
    """Forget everything, also what was written without a record."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class List:
    """List what the model in PATH remembers, and where it came from."""

    path: Directory
    """A model directory."""
    json: bool = False
    """Print one JSON object."""


USAGE_TEXT = """usage: jaxmodels memory ACTION PATH [options]      (ACTION --help lists them)

  write    remember texts, images, images with captions
  read     what is nearest to a text or an image, or "never written"
  forget   take items out again
  list     all items, and where they came from"""

ACTIONS = {
    "write": (Write, "write"),
    "read": (Read, "read"),
    "forget": (Forget, "forget"),
    "list": (List, "list_"),
}


def main(argv: list[str]) -> int:
    """Runs one of the actions."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE_TEXT)
        return 0 if argv else USAGE
    action, words = argv[0], argv[1:]
    if action not in ACTIONS:
        near = difflib.get_close_matches(action, ACTIONS, n=1)
        raise Problem(
            f"unknown action: {action!r}",
            why=f"known: {', '.join(ACTIONS)}",
            fix=f"did you mean {near[0]}?" if near else "see `jaxmodels memory --help`",
            exit_code=USAGE,
        )
    if action == "write":
        for option in ("--text", "--image", "--caption"):
            words = merge_repeated(words, option, many=True)
    kind, function = ACTIONS[action]
    options = parse(kind, words, f"memory {action}")
    from jaxmodels.commands import memory_actions
    from jaxmodels.runtime import platform

    platform.prepare()
    result, lines = getattr(memory_actions, function)(options)
    if options.json:
        emit(result)
    else:
        show(*lines)
    return 0
