"""Prepares text as a folder of tokens, for `jaxmodels data prepare` and training."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.characters import CHARACTERS, CharTokenizer
from data_pipelines.encoding import Shard, encode
from data_pipelines.errors import EXISTS, MISMATCH, USAGE, DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.limits import MAX_MANIFEST
from data_pipelines.reading import Progress, Reading, Source
from data_pipelines.shards import SHARD, concatenate, encode_all, locked, shards_of
from data_pipelines.sources import fingerprint, open_text
from data_pipelines.tokenizer_settings import MAX_FILE
from data_pipelines.tokenizers import Tokenizer, load_tokenizer
from jaxmodels.files import atomic_folder, refuse_existing
from jaxmodels.reading import digest, read_limited

TOKENS, MANIFEST = "tokens.bin", "manifest.json"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}

# Keys of the manifest and their types.
_FIELDS: dict[str, Any] = {
    "spec": str,
    "source": dict,
    "documents": int,
    "tokens": int,
    "unknown": int,
    "dtype": str,
    "vocab_size": int,
    "min_freq": int | None,
    "tokenizer": dict,
    "shards": list,
    "sha256": dict,
}


def prepare(
    spec: str,
    folder: Path | str,
    min_freq: int = 1,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    force: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Writes tokens.bin, the tokeniser's file and manifest.json, all or nothing.

    The text is read twice in bounded memory: for its digest (and its characters), and to encode
    it. Documents are separated by the tokeniser's end of text, or a blank line.

    A text of more than SHARD bytes is encoded in parts, kept in `.NAME.parts` beside the folder:
    after a kill or a full disk, the next call continues from them. They are removed when the
    folder is complete, or when another text is prepared.

    Args:
        spec: any but `bin:`.
        folder: where to write; must not exist.
        min_freq: a character must occur this often to enter the vocabulary.
        tokenizer: None builds a character vocabulary from the text.
        dtype: of tokens.bin, little-endian: uint16 or uint32; None takes the smaller one that fits.
        progress: called as (stage, bytes done, bytes in all).
        force: replace an existing prepared folder.
        workers: processes that encode; threads if the text is one file, or short.

    Returns:
        the manifest.

    Raises:
        DataProblem: (usage) unknown spec or dtype; (corrupt) no text, not readable, or changed
            during the call; (mismatch) the vocabulary does not fit the dtype.
        Exists: the folder exists.
        OSError: such as a full disk; only the parts are left behind.
    """
    if dtype and dtype not in DTYPES:
        raise DataProblem(f"unknown dtype: {dtype!r}", why="known: uint16, uint32", exit_code=USAGE)
    folder = Path(os.path.abspath(folder))
    refuse_foreign(folder, force)
    source = open_text(spec)
    with atomic_folder(folder, force) as new:
        stamp = source.stamp()
        tokenizer, identity = _tokenizer_and_identity(source, min_freq, tokenizer, progress)
        dtype = dtype or ("uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32")
        _refuse_overflow(tokenizer, dtype)
        tokenizer.save(new)
        shards, total = _write(
            source, identity, tokenizer, dtype, new, folder, workers, progress, force
        )
        if source.stamp() != stamp:
            raise DataProblem(
                "the text changed while it was read", where=spec, fix="prepare it again"
            )
        _refuse_empty(source, total.tokens)
        manifest = {
            "spec": spec,
            "source": identity,
            "dtype": dtype,
            **_counts(shards, total),
            **_tokenizer_entries(tokenizer),
            "sha256": {TOKENS: total.sha256, tokenizer.FILE: digest(new / tokenizer.FILE)},
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _counts(shards: list[Shard], total: Shard) -> dict[str, Any]:
    return {
        "documents": total.documents,
        "tokens": total.tokens,
        "unknown": total.unknown,
        "shards": [vars(shard) for shard in shards],
    }


def _tokenizer_entries(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "min_freq": tokenizer.min_freq if isinstance(tokenizer, CharTokenizer) else None,
        "tokenizer": {
            "file": tokenizer.FILE,
            "digest": tokenizer.digest,
            "end_of_text": tokenizer.end_of_text,
        },
    }


def _tokenizer_and_identity(
    source: Source, min_freq: int, tokenizer: Tokenizer | None, progress: Progress | None
) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokeniser, built from the characters if there is none, and the source's fingerprint."""
    if tokenizer:
        return tokenizer, fingerprint(source, progress)
    reading = Reading(source, "counting characters", progress)
    tokenizer = CharTokenizer.build(reading, min_freq)
    _refuse_empty(source, reading.characters)
    if source.records:
        return tokenizer, fingerprint(source, progress)
    return tokenizer, {"sha256": reading.sha256(), "files": source.files}


def _write(
    source: Source,
    identity: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: str,
    new: Path,
    folder: Path,
    workers: int,
    progress: Progress | None,
    force: bool,
) -> tuple[list[Shard], Shard]:
    """Writes tokens.bin into `new`; returns its shards and their total."""
    shards = shards_of(source, SHARD)
    if len(shards) == 1:

        def tick(done: int) -> None:
            if progress:
                progress("encoding", done, source.bytes)

        total = encode(shards[0], tokenizer, DTYPES[dtype], new / TOKENS, tick, workers)
        return [total], total
    plan = {"source": identity, "tokenizer": tokenizer.digest, "dtype": dtype, "shard": SHARD}
    work = folder.with_name(f".{folder.name}.parts")
    with locked(work):
        if not force:
            refuse_existing(folder)  # another process may have finished it
        made = encode_all(shards, plan, tokenizer, DTYPES[dtype], work, workers, progress)
        return made, concatenate(made, work, tokenizer, DTYPES[dtype], new / TOKENS)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataProblem: (corrupt) it is missing, unreadable or invalid, or tokens.bin has another
            size.
    """
    try:
        manifest = json.loads(read_limited(folder / MANIFEST, MAX_MANIFEST))
        for name, kind in _FIELDS.items():
            if not isinstance(manifest[name], kind):
                raise TypeError(f"{name} is {manifest[name]!r}")
        if min(manifest["tokens"], manifest["unknown"]) < 0:
            raise ValueError("it has a negative count")
        if not isinstance(manifest["source"]["sha256"], str):
            raise TypeError("the source has no sha256")
        if not isinstance(manifest["source"]["files"], dict):
            raise TypeError("the source has no table of files")
        if manifest["tokenizer"]["file"] not in (CHARACTERS, GPT2Tokenizer.FILE):
            raise ValueError(f"unknown tokeniser's file: {manifest['tokenizer']['file']}")
        _ = manifest["sha256"][TOKENS], manifest["sha256"][manifest["tokenizer"]["file"]]
        expected = manifest["tokens"] * np.dtype(DTYPES[manifest["dtype"]]).itemsize
        found = (folder / TOKENS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder, f"{type(error).__name__}: {str(error)[:200]}") from None
    if found != expected:
        raise damaged(folder, f"{TOKENS} has {found:,} bytes; the manifest says {expected:,}")
    return manifest


def read_tokenizer(folder: Path, manifest: dict[str, Any]) -> Tokenizer:
    """The tokeniser of a prepared folder, checked against the manifest."""
    name = manifest["tokenizer"]["file"]
    try:
        found = digest(folder / name, MAX_FILE)
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{name}: {error}") from None
    if found != manifest["sha256"][name]:
        raise damaged(folder, f"{name} is not the one in the manifest")
    return load_tokenizer(folder / name)


def _refuse_empty(source: Source, size: int) -> None:
    if not size:
        raise DataProblem("the text is empty", where=source.spec, fix="give a longer text")


def _refuse_overflow(tokenizer: Tokenizer, dtype: str) -> None:
    if tokenizer.vocab_size - 1 > np.iinfo(DTYPES[dtype]).max:
        raise DataProblem(
            f"a vocabulary of {tokenizer.vocab_size:,} does not fit {dtype}",
            why=f"its largest token id is {np.iinfo(DTYPES[dtype]).max:,}",
            fix="use --dtype uint32 with `jaxmodels data prepare`, or a larger minimum frequency",
            exit_code=MISMATCH,
        )


def refuse_foreign(folder: Path, force: bool) -> None:
    """Raises where --force would remove a folder that this command did not write."""
    if force and folder.exists() and not (folder / MANIFEST).is_file():
        raise DataProblem(
            "the output exists and is not a prepared folder; --force does not remove it",
            where=str(folder),
            fix="give another path",
            exit_code=EXISTS,
        )


def damaged(folder: Path, why: str) -> DataProblem:
    """The error for a prepared folder that has changed or is incomplete."""
    return DataProblem(
        "this is not an intact folder of prepared tokens",
        where=str(folder),
        why=why,
        fix="prepare it again with `jaxmodels data prepare SPEC FOLDER`",
    )
