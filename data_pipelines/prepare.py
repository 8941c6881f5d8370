"""Text to a folder of tokens, streamed; and the entry of `jaxmodels data`."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import EXISTS, MISMATCH, USAGE, DataProblem
from data_pipelines.files import digest, whole_folder
from data_pipelines.sources import Progress, Reading, open_text
from data_pipelines.tokenizers import CHARACTERS, CharTokenizer

TOKENS, MANIFEST = "tokens.bin", "manifest.json"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}

# What the manifest holds.
_FIELDS = {
    "spec": str,
    "source": dict,
    "tokens": int,
    "unknown": int,
    "dtype": str,
    "vocab_size": int,
    "min_freq": int,
    "sha256": dict,
}


def prepare(
    spec: str,
    folder: Path | str,
    min_freq: int = 1,
    tokenizer: CharTokenizer | None = None,
    dtype: str = "uint16",
    progress: Progress | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Writes tokens.bin, characters.json and manifest.json for a text, all or nothing.

    The text is read twice, once for the vocabulary and once to encode, in bounded memory.

    Args:
        spec: `pydoc` or `text:PATH`.
        folder: where to write; must not exist.
        min_freq: a character must occur this often to enter the vocabulary.
        tokenizer: use this vocabulary instead of the text's own.
        dtype: of tokens.bin, little-endian: uint16 or uint32.
        progress: called as (stage, bytes done, bytes in all).
        force: replace the prepared folder that is there.

    Returns:
        the manifest.

    Raises:
        DataProblem: (usage) unknown spec or dtype; (corrupt) no text, or not UTF-8;
            (mismatch) the vocabulary does not fit the dtype; (exists) the folder exists.
        OSError: the disk is full, say; nothing is left behind.
    """
    if dtype not in DTYPES:
        raise DataProblem(f"unknown dtype: {dtype!r}", why="known: uint16, uint32", exit_code=USAGE)
    folder = Path(os.path.abspath(folder))
    _refuse_foreign(folder, force)
    source = open_text(spec)
    with whole_folder(folder, force) as new:
        if tokenizer is None:
            reading = Reading(source, "counting characters", progress)
            tokenizer = CharTokenizer.build(reading, min_freq)
            _refuse_empty(reading)
        _refuse_overflow(tokenizer, dtype)
        return _write(new, Reading(source, "encoding", progress), tokenizer, dtype)


def _write(new: Path, reading: Reading, tokenizer: CharTokenizer, dtype: str) -> dict[str, Any]:
    """Fills the folder; returns the manifest, its last file."""
    tokenizer.save(new / CHARACTERS)
    tokens, unknown, sha256 = _encode(reading, tokenizer, DTYPES[dtype], new / TOKENS)
    _refuse_empty(reading)
    manifest = {
        "spec": reading.source.spec,
        "source": reading.fingerprint(),
        "tokens": tokens,
        "unknown": unknown,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "min_freq": tokenizer.min_freq,
        "sha256": {TOKENS: sha256, CHARACTERS: digest(new / CHARACTERS)},
    }
    (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataProblem: (corrupt) it is missing, unreadable or not ours, or tokens.bin does not
            have the size that it tells.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, kind in _FIELDS.items():
            if not isinstance(manifest[name], kind):
                raise TypeError(f"{name} is {manifest[name]!r}")
        _ = manifest["source"]["sha256"], manifest["source"]["documents"]
        _ = manifest["sha256"][TOKENS], manifest["sha256"][CHARACTERS]
        wanted = manifest["tokens"] * np.dtype(DTYPES[manifest["dtype"]]).itemsize
        found = (folder / TOKENS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{type(error).__name__}: {error}") from None
    if found != wanted:
        raise damaged(folder, f"{TOKENS} has {found:,} bytes; the manifest says {wanted:,}")
    return manifest


def read_tokenizer(folder: Path, manifest: dict[str, Any]) -> CharTokenizer:
    """The vocabulary of a prepared folder, checked against the manifest."""
    if digest(folder / CHARACTERS) != manifest["sha256"][CHARACTERS]:
        raise damaged(folder, f"{CHARACTERS} is not the one that the manifest tells")
    return CharTokenizer.load(folder / CHARACTERS)


def _encode(
    texts: Iterable[str], tokenizer: CharTokenizer, dtype: str, path: Path
) -> tuple[int, int, str]:
    """Writes the tokens; returns how many there are, how many are unknown, and the sha256."""
    tokens, unknown, sha256 = 0, 0, hashlib.sha256()
    with path.open("wb") as file:
        for text in texts:
            ids = tokenizer.encode(text)
            data = ids.astype(dtype).tobytes()
            file.write(data)
            sha256.update(data)
            tokens += len(ids)
            unknown += int((ids == tokenizer.unk_id).sum())
    return tokens, unknown, sha256.hexdigest()


def _refuse_empty(reading: Reading) -> None:
    if not reading.characters:
        raise DataProblem("the text is empty", where=reading.source.spec, fix="give a longer text")


def _refuse_overflow(tokenizer: CharTokenizer, dtype: str) -> None:
    if tokenizer.vocab_size - 1 > np.iinfo(DTYPES[dtype]).max:
        raise DataProblem(
            f"a vocabulary of {tokenizer.vocab_size:,} does not fit {dtype}",
            why=f"its largest token id is {np.iinfo(DTYPES[dtype]).max:,}",
            fix="use --dtype uint32 with `jaxmodels data prepare`, or a larger minimum frequency",
            exit_code=MISMATCH,
        )


def _refuse_foreign(folder: Path, force: bool) -> None:
    """--force replaces what this command wrote; it never removes a home directory."""
    if force and folder.exists() and not (folder / MANIFEST).is_file():
        raise DataProblem(
            "the output exists and is not a prepared folder; --force does not remove it",
            where=str(folder),
            fix="give another path",
            exit_code=EXISTS,
        )


def damaged(folder: Path, why: str) -> DataProblem:
    """The error that a prepared folder is not what was written."""
    return DataProblem(
        "this is no intact folder of prepared tokens",
        where=str(folder),
        why=why,
        fix="write it anew with `jaxmodels data prepare SPEC FOLDER`",
    )
