"""The options of `jaxmodels memory`'s actions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

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
