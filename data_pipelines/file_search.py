"""Finds the files of a spec: nothing is skipped silently."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.files import naming


def path_of(text: str) -> Path:
    """A path given by the user, with ~ expanded.

    Raises:
        DataProblem: (usage) there is no such user, or the path has a zero byte.
    """
    try:
        if "\0" not in text:
            return Path(text).expanduser()
        why = "it has a zero byte"
    except RuntimeError as error:
        why = str(error)
    raise DataProblem("this is not a path", where=repr(text)[:200], why=why, exit_code=USAGE)


def split_name(text: str) -> tuple[str, str]:
    """PATH and NAME of `PATH#NAME`. A # may be in either: the longest existing PATH is taken.

    NAME is empty if there is none. If no PATH exists, the text is split at the first #.
    """
    for at in (len(text), *(i for i in range(len(text) - 1, 0, -1) if text[i] == "#")):
        path = str(path_of(text[:at]))
        if os.path.lexists(path) or (glob.has_magic(path) and _matches(path)):
            return text[:at], text[at + 1 :]
    path, _, name = text.partition("#")
    return path, name


def find(text: str, *suffixes: str) -> dict[str, Path]:
    """The files of a path, sorted: name for the manifest → path.

    Links are followed; each folder is read once, however many links lead to it.

    Args:
        text: a file, a folder or a glob pattern, which may match folders.
        suffixes: of the files to take from a folder, at any depth; lower case, matched in either.

    Raises:
        DataProblem: (corrupt) there is none, or one is a broken link or not a regular file.
        OSError: a folder cannot be read.
    """
    path = path_of(text)
    if path.is_dir():
        found = {p.relative_to(path).as_posix(): p for p in _files_below(path, suffixes)}
        missing = f"the folder has no {_listed(suffixes)} file in it or below it"
    elif os.path.lexists(path):
        _refuse_irregular(path)
        found, missing = {path.name: path}, ""
    else:
        names = _matches(str(path))
        recursive = "**" in path.parts  # then the pattern matches the files themselves
        found = {}
        for match in map(Path, names):
            if match.is_dir():
                below = [] if recursive else list(_files_below(match, suffixes))
                found |= {p.as_posix(): p for p in below}
            else:
                _refuse_irregular(match)
                found[match.as_posix()] = match
        missing = "no such file or folder, and as a pattern it matches no file"
        if names and not found:
            missing = f"the matching folders have no {_listed(suffixes)} file in them or below them"
    if not found:
        raise DataProblem("there is no text", where=text, why=missing, fix="check the path")
    return dict(sorted(found.items()))


def refuse_holes(paths: Iterable[Path]) -> None:
    """Raises if a file of text is sparse, as an interrupted download may leave it.

    A hole reads as zeros, up to terabytes of them.
    """
    for path in paths:
        with naming(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE) if size else size
            except OSError:  # a file system without sparse files
                continue
        if hole < size:
            raise DataProblem(
                "this file is incomplete",
                where=f"{path}, byte {hole}",
                why="nothing was written there",
                fix="fetch or copy it again",
            )


def _listed(suffixes: tuple[str, ...]) -> str:
    return " or ".join(f"*{suffix}" for suffix in suffixes)


def _files_below(top: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files with these suffixes in a folder and below it."""
    for folder in _folders(top):
        for path in folder.iterdir():
            if path.name.startswith(".#"):  # an editor's lock, a link to nothing
                continue
            _refuse_dangling(path)  # whatever its name: it may have been a folder
            if path.name.lower().endswith(suffixes) and not path.is_dir():
                _refuse_irregular(path)
                yield path


def _folders(top: Path, hidden: bool = True) -> Iterator[Path]:
    """A folder and those below it, each once: links may form cycles. Linked ones come last."""
    real, linked = [top], list[Path]()
    seen = set[tuple[int, int]]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        yield folder
        for path in sorted(folder.iterdir()):
            if path.is_dir() and (hidden or not path.name.startswith(".")):
                (linked if path.is_symlink() else real).append(path)


def _matches(pattern: str) -> list[str]:
    """As `glob.glob(pattern, recursive=True)`, which would follow cycles of links."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    tops = _matches(str(Path(*parts[:at]))) if at else ["."]
    return [
        match
        for top in tops
        if os.path.isdir(top)
        for folder in _folders(Path(top), hidden=False)
        for match in _matches(str(Path(glob.escape(str(folder)), *rest)))
    ]


def _refuse_irregular(path: Path) -> None:
    """Raises unless the path is a regular file, which can be read twice."""
    _refuse_dangling(path)
    if not path.is_file():
        raise DataProblem(
            "this is not a regular file",
            where=str(path),
            why="the text is read more than once",
            fix="give a file",
        )


def _refuse_dangling(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataProblem(
            "this link is broken",
            where=str(path),
            why=f"{os.readlink(path)} does not exist, or cannot be reached",
            fix="restore its target, or remove the link",
        )
