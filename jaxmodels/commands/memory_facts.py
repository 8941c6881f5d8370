"""What `memory write` is to write: options, or lines of a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxmodels.commands.memory_options import Write
from jaxmodels.errors import USAGE, Problem
from jaxmodels.reading import MAX_JSON, json_object, read_limited

HERE = "the command line"


class Fact(NamedTuple):
    """What is to be written."""

    text: str | None
    """None: the model describes the image."""
    image: Path | None
    source: str


def facts_of(options: Write) -> tuple[Fact, ...]:
    """What the options and the file name.

    Raises:
        Problem: (usage) captions that go with no image, or nothing at all; (corrupt) a line of the
            file that says nothing.
    """
    if options.caption and len(options.caption) != len(options.image):
        raise Problem(
            f"{len(options.caption)} captions do not go with {len(options.image)} images",
            fix="give one --caption for each --image, or none",
            exit_code=USAGE,
        )
    captions = options.caption or (None,) * len(options.image)
    pictured = zip(captions, options.image, strict=True)
    facts = [Fact(text, None, options.source or HERE) for text in options.text]
    facts += [Fact(text, file, options.source or str(file.absolute())) for text, file in pictured]
    if options.file is not None:
        facts += _lines_of(options.file, options.source)
    if not facts and options.data is None:
        raise Problem("give --text, --image or --file to remember", exit_code=USAGE)
    return tuple(facts)


def _lines_of(file: Path, source: str | None) -> Iterator[Fact]:
    """The facts in a file of JSON lines; paths of images are relative to it."""
    for number, line in enumerate(read_limited(file, MAX_JSON).splitlines(), 1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            value = json_object(line)
        except ValueError as error:
            raise _bad_line(where, str(error)) from None
        if unknown := value.keys() - {"text", "image", "caption", "source"}:
            raise _bad_line(where, f"unknown: {', '.join(sorted(unknown))}")
        if not all(isinstance(each, str) for each in value.values()):
            raise _bad_line(where, "every value is a text")
        if ("text" in value) == ("image" in value) or ("text" in value and "caption" in value):
            raise _bad_line(where, 'it has either "text", or "image" and perhaps "caption"')
        image = file.parent / value["image"] if "image" in value else None
        given = value.get("source") or source
        came = given or (where if image is None else str(image.absolute()))
        yield Fact(value.get("text", value.get("caption")), image, came)


def _bad_line(where: str, why: str) -> Problem:
    fix = 'write {"text": …}, {"image": …} or {"image": …, "caption": …} on each line'
    return Problem("this line names nothing to remember", where=where, why=why, fix=fix)
