"""MkDocs hook: the site begins with README.md, and has the files elsewhere that pages link to.

Pages link as GitHub follows links: relative to their own place in the repository.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"""(?:(?<=\]\()|(?<=src=")|(?<=srcset="))([^)"\s#:]+)(?=[#)"])""")


def site_path(path: str) -> str:
    """Where a file of the repository is in the site's sources."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def targets(page: str) -> dict[str, str]:
    """Links of a page of the repository → the files they name."""
    links = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    folder = posixpath.dirname(page)
    named = {link: posixpath.normpath(posixpath.join(folder, link)) for link in links}
    return {link: path for link, path in named.items() if (ROOT / path).is_file()}


def on_files(files: Any, config: Any) -> Any:
    """Adds README.md and what the pages link to outside docs/, and so on from there."""
    pending = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        if not files.get_file_from_path(site_path(path)):
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            pending += targets(path).values()
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between the files of the repository, as links within the site."""
    uri = page.file.src_uri
    path = next(p for p in (f"docs/{uri}", uri, "README.md") if (ROOT / p).is_file())
    found = targets(path)

    def moved(match: re.Match[str]) -> str:
        if match[0] not in found:
            return match[0]
        return posixpath.relpath(site_path(found[match[0]]), posixpath.dirname(uri) or ".")

    return LINK.sub(moved, markdown)
