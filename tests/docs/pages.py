"""README.md and docs/ as blocks of commands."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block."""

    section: str
    language: str
    text: str

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Its commands, each with its comment; continued lines joined, spaces single."""
        joined = re.sub(r"\\\n", " ", self.text)
        parts = (re.split(r"\s#\s", f" {line} ", maxsplit=1) for line in joined.splitlines())
        found = [(" ".join(part[0].split()), " ".join(part[1:]).strip()) for part in parts]
        return [(command, comment) for command, comment in found if command]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for part in re.split(r"^#{1,3} ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        found += [Block(part.partition("\n")[0], *each) for each in fenced]
    return found
