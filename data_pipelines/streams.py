"""Token streams on disk: opened, memory-mapped, and checked against where they came from."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.characters import CHARACTERS, CharTokenizer
from data_pipelines.errors import MISMATCH, USAGE, DataProblem
from data_pipelines.finding import path_of
from data_pipelines.limits import WHOLE_FILE
from data_pipelines.prepare import (
    DTYPES,
    TOKENS,
    damaged,
    prepare,
    read_manifest,
    read_tokenizer,
)
from data_pipelines.reading import Progress
from data_pipelines.sources import fingerprint, open_text, unknown_spec
from data_pipelines.tokenizers import Tokenizer, unknown_name
from jaxmodels.files import Exists

_PIECE = 1 << 22  # tokens of a raw file that are looked at together
_SAMPLES, _SAMPLE = 1024, 1 << 15  # pieces of a file that is not read through, and their tokens


class TokenStream(NamedTuple):
    """Tokens, what they mean and what they are made from."""

    tokens: np.ndarray
    """One-dimensional, memory-mapped, read-only."""
    tokenizer: Tokenizer | None
    """None for a raw token file."""
    vocab_needed: int
    """Rows that an embedding needs."""
    sha256: dict[str, str]
    """`text_sha256` of a prepared folder, `tokens_sha256` of a raw file (`tokens_sample_sha256` of
    one that was not read through)."""
    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""
    whole: bool = True
    """Whether all tokens were looked at; if not, batches must be."""


def open_prepared(
    spec: str,
    folder: Path,
    min_freq: int = 1,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> TokenStream:
    """The tokens of a text, prepared into `folder` unless they are there; see `open_data`."""
    if not folder.exists():
        try:
            prepare(spec, folder, min_freq, tokenizer, progress=progress)
        except Exists:
            pass  # another process of the same run was quicker; what it wrote is checked below
        else:
            return _open_folder(folder, tokenizer, progress)
    manifest = read_manifest(folder)
    notes = _check_text(spec, folder, manifest, progress)
    if tokenizer is None and manifest["tokenizer"]["file"] != CHARACTERS:
        why = f"they have a {manifest['tokenizer']['file']}, and characters are wanted"
        raise _another("the tokeniser is not the one of the prepared tokens", folder, why)
    if tokenizer is None and manifest["min_freq"] != min_freq:
        why = f"min_freq is {min_freq} now, and was {manifest['min_freq']}"
        raise _another("the vocabulary is not the one of the prepared tokens", folder, why)
    stream = _open_folder(folder, tokenizer, progress)
    return stream._replace(notes=(*notes, *stream.notes))


def open_bin(
    spec: str,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    whole: bool = False,
) -> TokenStream:
    """What `bin:PATH` names: a prepared folder, or a raw file of little-endian tokens.

    A raw file is nanoGPT's train.bin: uint16 and nothing else, or `bin:PATH?dtype=uint32`.
    Either is read through once, for its digest and its largest token, unless it has more than
    `limits.WHOLE_FILE` bytes and `whole` is off: then samples are taken of a raw file, and a
    prepared folder's manifest is believed. Only `tokenizer` can say what the tokens of a raw file
    mean.

    Raises:
        DataProblem: (usage) unknown dtype; (corrupt) nothing there, not whole tokens, or not
            those that the manifest of the folder tells;
            (mismatch) the vocabulary is not `tokenizer`.
    """
    name, asked, dtype = spec.removeprefix("bin:").rpartition("?dtype=")
    if not asked or Path(dtype).name != dtype:  # the words may be of the path
        name, asked, dtype = spec.removeprefix("bin:"), "", ""
    path = path_of(name)
    if not name:
        raise unknown_spec(spec)
    if asked and (dtype not in DTYPES or path.is_dir()):
        why = "a prepared folder has its own" if path.is_dir() else f"known: {', '.join(DTYPES)}"
        raise DataProblem(f"dtype {dtype!r} cannot be used", where=spec, why=why, exit_code=USAGE)
    if path.is_dir():
        return _open_folder(path, tokenizer, progress, whole)
    if not path.is_file():
        raise DataProblem("there is no token file", where=name, fix="check the path")
    tokens = _map(path, dtype or "uint16")
    whole = whole or tokens.nbytes <= WHOLE_FILE
    sha256, largest = _scan(tokens, progress, None if whole else _SAMPLES)
    if tokenizer is not None and largest >= tokenizer.vocab_size:
        raise DataProblem(
            "the token file has another vocabulary than the model",
            where=name,
            why=f"its largest token is {largest}, the vocabulary has {tokenizer.vocab_size}",
            fix="give the tokeniser that the file was made with, or its dtype: ?dtype=uint32",
            exit_code=MISMATCH,
        )
    needed = tokenizer.vocab_size if tokenizer else largest + 1
    digest = {"tokens_sha256" if whole else "tokens_sample_sha256": sha256}
    notes = () if whole else (_not_read(tokens, f"{_SAMPLES:,} samples of it tell it apart"),)
    return TokenStream(tokens, tokenizer, needed, digest, notes, whole)


def _not_read(tokens: np.ndarray, why: str) -> str:
    gigabytes = f"the tokens ({tokens.nbytes / 1e9:,.0f} GB) are not read through before training"
    return f"{gigabytes}: {why}; each batch is checked"


def _open_folder(
    folder: Path, tokenizer: Tokenizer | None, progress: Progress | None, whole: bool = False
) -> TokenStream:
    """Opens a prepared folder; its tokens are read through once, for their digest (`open_bin`)."""
    manifest = read_manifest(folder)
    own = read_tokenizer(folder, manifest)
    if tokenizer and own.digest != tokenizer.digest:
        why = f"{own.vocab_size} tokens there, {tokenizer.vocab_size} in the model's vocabulary"
        if isinstance(own, CharTokenizer) and isinstance(tokenizer, CharTokenizer):
            odd = sorted(set(own.chars) ^ set(tokenizer.chars))
            why += f"; in one of them only: {''.join(odd[:20])!r}" if odd else ""
        raise _another("the prepared tokens have another vocabulary than the model", folder, why)
    tokens = _map(folder / TOKENS, manifest["dtype"])
    notes = []
    if not (whole := whole or tokens.nbytes <= WHOLE_FILE):
        notes.append(_not_read(tokens, "`jaxmodels data inspect` checks them all"))
    elif _scan(tokens, progress)[0] != manifest["sha256"][TOKENS]:
        raise damaged(folder, f"{TOKENS} is not the one in the manifest")
    if unknown := manifest["unknown"]:
        share = unknown / manifest["tokens"]
        what = "characters" if isinstance(own, CharTokenizer) else "tokens"
        name = unknown_name(own)
        notes.append(f"{unknown:,} {what} ({share:.2%}) are {name}: not in the vocabulary")
    return TokenStream(
        tokens,
        own,
        own.vocab_size,
        {"text_sha256": manifest["source"]["sha256"]},
        tuple(notes),
        whole,
    )


def _map(path: Path, dtype: str) -> np.ndarray:
    size, width = path.stat().st_size, np.dtype(DTYPES[dtype]).itemsize
    if size == 0 or size % width:
        raise DataProblem(
            "this is not a token file",
            where=str(path),
            why=f"{size:,} bytes are not a whole number of {dtype} tokens"
            if size
            else "it is empty",
            fix="give a raw token file, bin:PATH?dtype=uint32 if it has 4 bytes a token",
        )
    return np.memmap(path, DTYPES[dtype], "r")


def _scan(
    tokens: np.ndarray, progress: Progress | None, samples: int | None = None
) -> tuple[str, int]:
    """sha256 and largest token of a stream, in bounded memory; or of its length and samples."""
    sha256, largest = hashlib.sha256(), 0
    starts, size = list(range(0, len(tokens), _PIECE)), _PIECE
    if samples:
        sha256.update(f"{len(tokens)} {samples} {_SAMPLE}".encode())
        starts, size = (
            [i * (len(tokens) - _SAMPLE) // (samples - 1) for i in range(samples)],
            _SAMPLE,
        )
    for start in starts:
        piece = np.asarray(tokens[start : start + size])
        sha256.update(piece.data)
        largest = max(largest, int(piece.max()))
        if progress:
            progress("checking the tokens", start * piece.itemsize + piece.nbytes, tokens.nbytes)
    return sha256.hexdigest(), largest


def _check_text(
    spec: str, folder: Path, manifest: dict[str, Any], progress: Progress | None
) -> tuple[str, ...]:
    """Notes, if the prepared tokens may be used for this spec; the text itself decides.

    Raises:
        DataProblem: (mismatch) the folder holds the tokens of another text; tells what changed.
    """
    try:
        source = open_text(spec)
    except DataProblem as problem:
        if problem.exit_code == USAGE or manifest["spec"] != spec:
            raise
        return (f"{spec} is gone; going on with the tokens prepared from it in {folder}",)
    now, then = fingerprint(source, progress), manifest["source"]
    if now["sha256"] == then["sha256"]:
        return ()
    if manifest["spec"] != spec:
        why = f"they were prepared from {manifest['spec']}, not from {spec}"
    else:
        why = _changes(then["files"], now["files"])
    raise _another("the text is not the one that the tokens were prepared from", folder, why)


def _changes(then: dict[str, int], now: dict[str, int]) -> str:
    """What differs between two tables of document sizes, in a line or a few."""
    lines = [
        *(f"{name} is gone" for name in then if name not in now),
        *(f"{name} is new" for name in now if name not in then),
        *(
            f"{name} had {then[name]:,} bytes and has {now[name]:,}"
            for name in then
            if name in now and then[name] != now[name]
        ),
    ]
    if len(lines) > 4:
        lines[3:] = [f"and {len(lines) - 3} more changes"]
    return "\n".join(lines) or "the same files of the same sizes have other contents"


def _another(what: str, folder: Path, why: str) -> DataProblem:
    return DataProblem(
        what,
        where=str(folder),
        why=why,
        fix=f"use the tokens as they are with --data bin:{folder}, or start anew elsewhere",
        exit_code=MISMATCH,
    )
