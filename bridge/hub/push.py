"""push: a checkpoint to the Hugging Face hub, in one commit, after it was checked.

The repository becomes equal to the folder: a `model.safetensors` left from before would be loaded
by transformers in place of new shards. So it needs `--force` where something exists already. An
edited model card fails `verify`, but neither push nor pull.
"""

import warnings
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.checks.verification import CARD, but_for_the_card, digest_problems
from bridge.core.report import Report
from bridge.formats import recognise
from bridge.formats.foreign import code_of_ours, our_code
from bridge.formats.runs import is_run, is_step
from bridge.hub.client import ask, client, names, repository
from bridge.hub.files import few, named_code, refuse_damage, wanted
from bridge.hub.limits import ANSWER, seconds_for
from jaxmodels.errors import CORRUPT, EXISTS, UNSAFE, USAGE, Problem
from jaxmodels.files import files_below
from jaxmodels.reading import read_limited

_LONGEST = 1_000_000  # bytes of a table
_HEADING = "## Evaluation\n"


def push(
    folder: str | Path,
    to: str,
    revision: str | None = None,
    private: bool = False,
    force: bool = False,
    table: str | Path | None = None,
) -> Report:
    """Uploads a checkpoint as one commit, after which the repository has the folder's content.

    Files that `pull` would not download (code that is not ours, for example) are left out.

    Args:
        folder: a model directory, or a folder of another known format; not a run.
        to: "hf://owner/name"; created if there is none.
        revision: the branch; created if there is none. Default: main.
        private: make a newly created repository private.
        force: replace the content of the repository (its history keeps it).
        table: a Markdown file of results, for the section "Evaluation" of the uploaded model card;
            the folder is not changed.

    Returns:
        `repository`, `revision`, `commit`, `url`, `files`, `left_out` and `removed` (names),
        `bytes`.

    Raises:
        Problem: (usage) it is a run; (corrupt) it is not a known checkpoint; (unsafe) its configs
            name code that is not ours; (verification failed) a digest is wrong; (exists) the
            repository is not empty; (network) the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folder, name, hub = Path(folder), repository(to), client()
    files, left_out = _checked(folder)
    card = None if table is None else _with_table(folder / CARD, Path(table))
    if card is not None:
        files = sorted({*files, CARD})
    there = ask(to, "write", lambda: names(hub, name, revision, private))
    if there and not force:
        raise Problem(
            "the repository holds files already",
            where=f"{to}, {revision or 'main'}",
            why=few(there),
            fix="give another name or --revision, or --force to replace them in one commit",
            exit_code=EXISTS,
        )
    gone = sorted(set(there) - set(files))
    size = sum(
        len(card) if file == CARD and card is not None else (folder / file).stat().st_size
        for file in files
    )

    def content(file: str) -> Path | bytes:
        return card if file == CARD and card is not None else folder / file

    def commit() -> Any:
        with warnings.catch_warnings(action="ignore"):
            return hub.create_commit(
                name,
                [
                    *(CommitOperationAdd(file, content(file)) for file in files),
                    *(CommitOperationDelete(file) for file in gone),
                ],
                commit_message=f"Upload by jaxmodels {jaxmodels.__version__}",
                revision=revision,
            )

    done = ask(to, "write", commit, ANSWER, seconds_for(size))
    return Report(
        repository=name,
        revision=revision or "main",
        commit=done.oid,
        url=f"{hub.endpoint}/{name}",
        files=files,
        left_out=left_out,
        removed=gone,
        bytes=size,
    )


def _with_table(card: Path, table: Path) -> bytes:
    """The model card with a table of results; one that an earlier call put there is replaced.

    Raises:
        Problem: (corrupt) the table cannot be read.
    """
    try:
        results = read_limited(table, _LONGEST).decode("utf-8").strip()
    except (OSError, ValueError) as error:
        raise Problem(
            "the table of results cannot be read",
            where=str(table),
            why=str(error),
            fix="`jaxmodels eval DIR --table FILE` writes one",
            exit_code=CORRUPT,
        ) from None
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    before, _, after = text.partition(_HEADING)
    rest = after.partition("\n## ")
    later = f"\n## {rest[2]}" if rest[1] else ""
    return f"{before.rstrip()}\n\n{_HEADING}\n{results}\n{later}".lstrip().encode()


def _checked(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a folder that may be pushed (it is known, no run, and sound), and the others."""
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
    refuse_damage(found or [], str(folder), "convert or fetch it again")
    names = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    ours = code_of_ours(folder)
    files = [name for name in wanted(names) if name in ours or name not in our_code()]
    if named := named_code(folder, files):
        raise Problem(
            "the folder names code that is not jaxmodels'",
            where=str(folder),
            why=f"who loads it would run it: {few(named)}",
            fix=f"jaxmodels convert {folder} DIR, and push DIR",
            exit_code=UNSAFE,
        )
    return files, [name for name in names if name not in files]
