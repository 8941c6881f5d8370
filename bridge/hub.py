"""Checkpoints to and from the Hugging Face hub: whole, checked, and nothing executed."""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.hub_client import HOUSEKEEPING, asking, client, names, repository
from bridge.kept_shards import kept_beside
from bridge.report import Report
from jaxmodels.errors import CORRUPT, EXISTS, NETWORK, UNVERIFIED, USAGE, Problem
from jaxmodels.runtime.files import (
    MANIFEST,
    digest,
    files_below,
    read_sealed,
    whole_folder,
    write_manifest,
)

# What `pull` takes, by the name or its last part: data and prose, which nothing executes.
_DATA = ("*.safetensors", "*.gguf", "*.json", "*.md", "*.txt", "LICENSE*")
# Orbax's files, which have no endings.
_ORBAX = (
    *("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "*.ocdbt", "d/*", "*/d/*"),
    *("array_metadatas/*", "*/array_metadatas/*"),
)
# The weights of published checkpoints in the formats of their own code. They are read as data
# (a pickle is never executed) and taken only where there is no safetensors file.
_WEIGHTS = (
    *("good_stuff.pkl", "make_stuff_better.pkl", "step_*.zip", "ckpt.pt", "checkpoint-*.pt"),
    *("stage1_*.pt", "model_epoch_*.pt", "pytorch_model.bin", "dinov2_*.pth"),
)


def push(
    folder: str | Path,
    to: str,
    revision: str | None = None,
    private: bool = False,
    force: bool = False,
) -> Report:
    """Uploads a checkpoint as one commit, after which the repository is what the folder is.

    Args:
        folder: a model directory, or a folder of another known format; not a run.
        to: "hf://owner/name"; made when there is none.
        revision: the branch; made when there is none. Default: main.
        private: a repository that is made now is private.
        force: replace what the repository holds (its history keeps it).

    Returns:
        `repository`, `revision`, `commit`, `url`, `files` (names), `removed` (names), `bytes`.

    Raises:
        Problem: (usage) it is a run; (corrupt) no known checkpoint; (verification failed) a
            digest is wrong; (exists) the repository holds something; (network) the hub cannot
            be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folder, name, hub = Path(folder), repository(to), client()
    files = _checked(folder)
    with asking(to, "write"):
        there = names(hub, name, revision, private)
    if there and not force:
        raise Problem(
            "the repository holds files already",
            where=f"{to}, {revision or 'main'}",
            why=_few(there),
            fix="give another name or --revision, or --force to replace them in one commit",
            exit_code=EXISTS,
        )
    gone = sorted(set(there) - set(files))
    with asking(to, "write"), warnings.catch_warnings(action="ignore"):
        commit = hub.create_commit(
            name,
            [
                *(CommitOperationAdd(file, folder / file) for file in files),
                *(CommitOperationDelete(file) for file in gone),
            ],
            commit_message=f"Upload by jaxmodels {jaxmodels.__version__}",
            revision=revision,
        )
    return Report(
        repository=name,
        revision=revision or "main",
        commit=commit.oid,
        url=f"{hub.endpoint}/{name}",
        files=files,
        removed=gone,
        bytes=sum((folder / file).stat().st_size for file in files),
    )


def pull(
    source: str, folder: str | Path, revision: str | None = None, force: bool = False
) -> Report:
    """Downloads a checkpoint: whole and with the right digests, or not at all.

    A call after one that was cut off goes on with the files, and parts of files, that are there.

    Only data is taken. Of code, what a model directory of this version carries is taken, if it
    is that to the byte. Of pickles, those of known names are, for `convert` to read as data.

    Args:
        source: "hf://owner/name".
        folder: the folder to create.
        revision: branch, tag or commit. Default: main.
        force: replace what is at `folder`, once the new one is complete.

    Returns:
        `repository`, `revision` (the commit), `output`, `format` (None when it is none that is
        known), `files`, `left_out` (names), `bytes`, `digests_ok` (None without a manifest).

    Raises:
        Problem: (exists) something is at `folder`; (corrupt) the repository holds no file that
            would be taken; (verification failed) a digest is wrong; (network) the hub cannot be
            reached, or refuses.
        OSError: the disk has no room for it.
    """
    from bridge.formats import kind

    folder, name, hub = Path(folder), repository(source), client()
    with whole_folder(folder, force) as temporary:
        with asking(source, "read"):
            info = hub.model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        with kept_beside(folder, f"{source}@{info.sha}", _is_network) as parts:
            place = parts or temporary

            def fetch(file: str) -> None:
                with asking(source, "read"):  # what is there already is not fetched again
                    hub.hf_hub_download(name, file, revision=info.sha, local_dir=place)

            taken = _fetch_wanted(place, sizes, source, fetch)
            for file in taken if parts else ():
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).rename(temporary / file)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the hub client's notes
        taken = _without_foreign_code(temporary, taken)
        left_out = sorted(set(sizes) - set(taken) - {HOUSEKEEPING})
        digests_ok = _check_digests(temporary, source, left_out)
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


def _fetch_wanted(
    folder: Path, sizes: dict[str, int], source: str, fetch: Callable[[str], None]
) -> list[str]:
    """Fetches those files (name → bytes) that are taken, and of them what the manifest names."""
    taken = wanted(list(sizes))
    if not taken:
        raise Problem(
            "the repository holds no file of a known checkpoint",
            where=source,
            why=f"it holds: {_few(sizes)}",
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


def wanted(names: list[str]) -> list[str]:
    """Those files of a repository that `pull` takes, sorted.

    Names that would lead out of the folder, or are hidden, are never among them.
    """
    inside = [
        name
        for name in sorted(names)
        if not any(part.startswith(".") or not part for part in re.split(r"[/\\]", name))
    ]
    kinds: tuple[str, ...] = _DATA + _ORBAX
    if not any(name.endswith(".safetensors") for name in inside):
        kinds += _WEIGHTS
    ours = _our_code()
    return [name for name in inside if name in ours or _fits(name, kinds)]


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    last = name.rpartition("/")[2]
    return any(fnmatchcase(last, p) or fnmatchcase(name, p) for p in patterns)


def _our_code() -> dict[str, str]:
    """Name → sha256 of the modelling files that model directories of this version carry."""
    from bridge.torch import twin

    return {file.name: digest(file) for arch in jaxmodels.ARCHS for file in twin(arch).FILES}


def _without_foreign_code(folder: Path, files: list[str]) -> list[str]:
    """Removes code that is not ours to the byte; the files that stay."""
    ours = _our_code()
    foreign = {file for file in files if file in ours and digest(folder / file) != ours[file]}
    for file in foreign:
        (folder / file).unlink()
    return [file for file in files if file not in foreign]


def _checked(folder: Path) -> list[str]:
    """The files of a folder that may be pushed: known, not a run, and sound."""
    from bridge.formats import recognise
    from bridge.formats.runs import is_run, is_step
    from bridge.verification import but_for_the_card, digest_problems

    if folder.is_file():
        raise Problem(
            "push takes a folder",
            where=str(folder),
            fix=f"jaxmodels convert {folder} DIR, and push DIR",
            exit_code=USAGE,
        )
    recognise(folder)
    if is_run(folder) or is_step(folder):
        raise Problem(
            "this is a training run, with optimiser and data, not a model to publish",
            where=str(folder),
            fix=f"jaxmodels convert {folder} DIR, and push DIR",
            exit_code=USAGE,
        )
    found = but_for_the_card(digest_problems(folder))
    _no_damage(found or [], str(folder), "convert or fetch it again")
    names = [str(path.relative_to(folder)) for path in files_below(folder)]
    return [name for name in names if not any(part.startswith(".") for part in name.split(os.sep))]


def _check_digests(folder: Path, source: str, left_out: list[str]) -> bool | None:
    """True when all that was promised and taken is right; None without a manifest.

    A model card that its owner edited is right from here on.
    """
    from bridge.verification import but_for_the_card, digest_problems

    found = digest_problems(folder)
    if found is None:
        return None
    known = {f"{name} is missing" for name in left_out}
    wrong = [line for line in but_for_the_card(found) or [] if line not in known]
    _no_damage(wrong, source, "pull again; if it stays so, tell the owner of the repository")
    if found and not any(line in known for line in found):
        manifest = read_sealed(folder / MANIFEST)
        write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("files", "seal")})
    return True


def _no_damage(lines: list[str], where: str, fix: str) -> None:
    if lines:
        raise Problem(
            "the files are not what their manifest promises",
            where=where,
            why=_few(lines, "\n"),
            fix=fix,
            exit_code=UNVERIFIED,
        )


def _promised(folder: Path) -> set[str]:
    """The files that a manifest names."""
    from bridge.safetensors_reader import parse_json

    promised = parse_json(folder / MANIFEST).get("files")
    return set(promised) if isinstance(promised, dict) else set()


def _check_room(folder: Path, need: int) -> None:
    if shutil.disk_usage(folder).free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))


def _few(lines: Any, between: str = ", ") -> str:
    lines = sorted(lines)
    more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
    return between.join([*lines[:8], *more]) or "nothing"
