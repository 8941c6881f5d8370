"""pull: a checkpoint from the Hugging Face hub: complete and checked, and nothing executed.

What is taken is on a list: data, prose, and weights in the seeds' formats under their known names.
A modelling file is taken only if it is our own to the byte: `convert` writes it anew into any
folder, so nobody needs a stranger's.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.checks.verification import but_for_the_card, digest_problems
from bridge.conversion.kept_shards import kept_beside
from bridge.core.report import Report
from bridge.formats import kind
from bridge.hub.client import HOUSEKEEPING, ask, client, repository
from bridge.hub.files import few, leave_out_code, refuse_damage, remove_foreign_code, wanted
from bridge.hub.limits import PATIENCE, seconds_for
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, NETWORK, Problem
from jaxmodels.files import atomic_folder
from jaxmodels.runtime.manifest import MANIFEST, write_manifest

MAX_FILES = 10_000
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
# Errors of a path that cannot be; the client's own are of other classes.
_PATHS = (OSError, FileNotFoundError, NotADirectoryError)
_NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def pull(
    source: str, folder: str | Path, revision: str | None = None, force: bool = False
) -> Report:
    """Downloads a checkpoint: completely and with the right digests, or not at all.

    A call after an interrupted one continues with the files, and parts of files, already there.

    Only data is downloaded: no code, except files that are byte for byte those of this version's
    model directories. Keys that name other code are removed from configs. Pickles are downloaded
    only under known names, for `convert` to read as data.

    Args:
        source: "hf://owner/name".
        folder: the folder to create.
        revision: branch, tag or commit. Default: main.
        force: replace what is at `folder`, once the new one is complete.

    Returns:
        `repository`, `revision` (the commit), `output`, `format` (None if unknown), `files`,
        `left_out` (names, and keys: "auto_map in config.json"), `bytes`, `digests_ok` (None
        without a manifest).

    Raises:
        Problem: (exists) something is at `folder`; (corrupt) the repository has no file to
            download; (verification failed) a digest is wrong; (network) the hub cannot be
            reached, or refuses.
        OSError: the disk has no room for it.
    """
    folder, name, hub = Path(folder), repository(source), client()
    with atomic_folder(folder, force) as temporary:
        info = ask(
            source,
            "read",
            lambda: hub.model_info(name, revision=revision, files_metadata=True, timeout=PATIENCE),
        )
        listed = _listed(info, source)
        sizes = {file: row.size for file, row in listed.items()}
        with kept_beside(folder, f"{source}@{info.sha}", _is_network) as parts:
            place = parts or temporary
            end = time.monotonic() + seconds_for(sum(sizes.values())) + len(sizes)

            def fetch(file: str) -> None:  # what is there already is not fetched again
                def load() -> None:
                    try:
                        hub.hf_hub_download(name, file, revision=info.sha, local_dir=place)
                    except OSError as error:
                        if type(error) in _PATHS and error.errno in _NO_PATH:
                            # The client names files after what the hub answers.
                            raise LookupError(f"of {file}: {error.strerror}") from error
                        raise

                left = min(seconds_for(sizes[file]), end - time.monotonic())
                ask(source, "read", load, sizes[file], left)
                _check_file(place / file, listed[file], source)

            taken = _fetch_wanted(place, sizes, source, fetch)
            for file in taken if parts else ():
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).rename(temporary / file)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the hub client's notes
        taken = remove_foreign_code(temporary, taken)
        left_out = sorted(set(sizes) - set(taken) - {HOUSEKEEPING})
        digests_ok = _check_digests(temporary, source, left_out)
        if keys := leave_out_code(temporary, taken):
            left_out += keys
            if digests_ok:
                _renew_manifest(temporary)
        found = kind(temporary)
    return Report(
        repository=name,
        revision=info.sha,
        output=str(folder),
        format=found,
        files=taken,
        left_out=left_out,
        bytes=sum((folder / file).stat().st_size for file in taken),
        digests_ok=digests_ok,
    )


def _is_network(error: Exception) -> bool:
    """Whether it is worth to keep what was fetched: the next call may get the rest."""
    return isinstance(error, Problem) and error.exit_code == NETWORK


@dataclass(frozen=True)
class _Listed:
    """A file as the hub lists it."""

    size: int
    sha256: str | None  # of a large file, which the hub keeps outside git
    blob: str | None  # git's digest of a small one


def _listed(info: Any, source: str) -> dict[str, _Listed]:
    """Name → size and digests of a repository's files, as its listing states them."""
    rows = [(file.rfilename, file) for file in info.siblings or ()]
    odd = [
        name
        for name, file in rows
        if not (isinstance(name, str) and type(file.size) is int and file.size >= 0)
    ]
    known = isinstance(info.sha, str) and _COMMIT.fullmatch(info.sha)
    if odd or len(rows) > MAX_FILES or not known:
        why = "" if known else f"it is of the commit {str(info.sha)[:80]!r}"
        raise Problem(
            "the hub's list of files cannot be used",
            where=source,
            why=f"it states no size of {few(map(str, odd))}"
            if odd
            else why or f"{len(rows):,} files",
            fix="see why; try again later if the hub is at fault",
            exit_code=NETWORK,
        )
    return {
        name: _Listed(file.size, file.lfs.sha256, None)
        if file.lfs
        else _Listed(file.size, None, file.blob_id)
        for name, file in rows
    }


def _check_file(file: Path, listed: _Listed, source: str) -> None:
    """Removes and refuses a file whose size or digest is not the listed one.

    Raises:
        Problem: (network) it is not.
    """
    why = ""
    if (size := file.stat().st_size) != listed.size:
        why = f"{file.name} has {size:,} bytes, and {listed.size:,} in the list of files"
    elif listed.sha256 and _digest(file, hashlib.sha256()) != listed.sha256:
        why = f"{file.name} has another sha256 than in the list of files"
    elif listed.blob and _digest(file, _git(size)) != listed.blob:
        why = f"{file.name} has another digest than in the list of files"
    if not why:
        return
    file.unlink()
    raise Problem(
        "the hub sends another file than it lists",
        where=source,
        why=why,
        fix="try again later; if it stays so, tell the owner of the repository",
        exit_code=NETWORK,
    )


def _git(size: int) -> Any:
    """The hash by which git names the content of a file of so many bytes."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def _digest(file: Path, start: Any) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: start).hexdigest()


def _fetch_wanted(
    folder: Path, sizes: dict[str, int], source: str, fetch: Callable[[str], None]
) -> list[str]:
    """Fetches those files (name → bytes) that are taken, and of them what the manifest names."""
    taken = wanted(list(sizes))
    if not taken:
        raise Problem(
            "the repository holds no file of a known checkpoint",
            where=source,
            why=f"it holds: {few(sizes)}",
            fix="check the name and --revision",
            exit_code=CORRUPT,
        )
    _check_room(folder, sum(sizes[file] for file in taken))
    if MANIFEST in taken:
        fetch(MANIFEST)
        promised = _promised(folder)
        taken = [file for file in taken if file == MANIFEST or file in promised]
    for file in taken:
        fetch(file)
    return taken


def _renew_manifest(folder: Path) -> None:
    manifest = parse_json(folder / MANIFEST)
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("files", "seal")})


def _check_digests(folder: Path, source: str, left_out: list[str]) -> bool | None:
    """True when all that was promised and taken is right; None without a manifest.

    A model card that its owner edited is right from here on.
    """
    found = digest_problems(folder)
    if found is None:
        return None
    known = {f"{name} is missing" for name in left_out}
    wrong = [line for line in but_for_the_card(found) or [] if line not in known]
    refuse_damage(wrong, source, "pull again; if it stays so, tell the owner of the repository")
    if found and not any(line in known for line in found):
        _renew_manifest(folder)
    return True


def _promised(folder: Path) -> set[str]:
    """The files that a manifest names."""
    promised = parse_json(folder / MANIFEST).get("files")
    return set(promised) if isinstance(promised, dict) else set()


def _check_room(folder: Path, need: int) -> None:
    if shutil.disk_usage(folder).free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
