"""Token files: opened, memory-mapped and checked against their source."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.characters import CHARACTERS, CharTokenizer
from data_pipelines.errors import EXISTS, MISMATCH, USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.limits import MAX_FULL_SCAN
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

_PIECE = 1 << 22  # tokens of a raw file that are read at a time
_SAMPLES, _SAMPLE = 1024, 1 << 15  # pieces of a file that is only sampled, and their tokens


class TokenStream(NamedTuple):
    """Tokens, their tokeniser and the identity of their source."""

    tokens: np.ndarray
    """One-dimensional, memory-mapped, read-only."""
    tokenizer: Tokenizer | None
    """None for a raw token file."""
    vocab_needed: int
    """Rows that an embedding needs."""
    sha256: dict[str, str]
    """`text_sha256` of a prepared folder, `tokens_sha256` of a raw file (`tokens_sample_sha256` of
    one that was only sampled)."""
    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""
    scanned: bool = True
    """Whether all tokens were checked; if not, batches must be."""


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
        except DataProblem as problem:
            # Another process of the same run was faster; what it wrote is checked below.
            if problem.exit_code != EXISTS:
                raise
        else:
            return _open_folder(folder, tokenizer, progress)
    manifest = read_manifest(folder)
    notes = _check_text(spec, folder, manifest, progress)
    if tokenizer is None and manifest["tokenizer"]["file"] != CHARACTERS:
        why = f"they have a {manifest['tokenizer']['file']}, but characters were asked for"
        raise _mismatch("the tokeniser is not the one of the prepared tokens", folder, why)
    if tokenizer is None and manifest["min_freq"] != min_freq:
        why = f"min_freq is {min_freq}, and was {manifest['min_freq']}"
        raise _mismatch("the vocabulary is not the one of the prepared tokens", folder, why)
    stream = _open_folder(folder, tokenizer, progress)
    return stream._replace(notes=(*notes, *stream.notes))


def open_bin(
    spec: str,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    full_scan: bool = False,
) -> TokenStream:
    """Opens `bin:PATH`: a prepared folder, or a raw file of little-endian tokens.

    A raw file is nanoGPT's train.bin: uint16 and nothing else, or `bin:PATH?dtype=uint32`; only
    `tokenizer` can give its tokens a meaning. All tokens are read once, for their digest and the
    largest of them. Of more than `limits.MAX_FULL_SCAN` bytes that takes too long: without
    `full_scan` samples are then the identity of a raw file, a prepared folder's manifest is
    trusted, and each batch is checked against the vocabulary.

    Raises:
        DataProblem: (usage) unknown dtype; (corrupt) missing, not a whole number of tokens, or
            not those in the folder's manifest; (mismatch) the vocabulary is not `tokenizer`.
    """
    name, asked, dtype = spec.removeprefix("bin:").rpartition("?dtype=")
    if not asked or Path(dtype).name != dtype:  # "?dtype=" may be part of the path
        name, asked, dtype = spec.removeprefix("bin:"), "", ""
    path = path_of(name)
    if not name:
        raise unknown_spec(spec)
    if asked and (dtype not in DTYPES or path.is_dir()):
        why = "a prepared folder has its own" if path.is_dir() else f"known: {', '.join(DTYPES)}"
        raise DataProblem(f"dtype {dtype!r} cannot be used", where=spec, why=why, exit_code=USAGE)
    if path.is_dir():
        return _open_folder(path, tokenizer, progress, full_scan)
    if not path.is_file():
        raise DataProblem("there is no token file", where=name, fix="check the path")
    tokens = _map(path, dtype or "uint16")
    full_scan = full_scan or tokens.nbytes <= MAX_FULL_SCAN
    sha256, largest = _scan(tokens, progress, None if full_scan else _SAMPLES)
    if tokenizer is not None and largest >= tokenizer.vocab_size:
        raise DataProblem(
            "the token file has another vocabulary than the model",
            where=name,
            why=f"its largest token is {largest}, the vocabulary has {tokenizer.vocab_size}",
            fix="give the tokeniser that the file was made with, or its dtype: ?dtype=uint32",
            exit_code=MISMATCH,
        )
    needed = tokenizer.vocab_size if tokenizer else largest + 1
    digest = {"tokens_sha256" if full_scan else "tokens_sample_sha256": sha256}
    notes = () if full_scan else (_not_scanned(tokens, f"{_SAMPLES:,} samples identify them"),)
    return TokenStream(tokens, tokenizer, needed, digest, notes, full_scan)


def _not_scanned(tokens: np.ndarray, why: str) -> str:
    gigabytes = f"the tokens ({tokens.nbytes / 1e9:,.0f} GB) are not all read before training"
    return f"{gigabytes}: {why}; each batch is checked"


def _open_folder(
    folder: Path, tokenizer: Tokenizer | None, progress: Progress | None, full_scan: bool = False
) -> TokenStream:
    """Opens a prepared folder, as `open_bin`."""
    manifest = read_manifest(folder)
    stored = read_tokenizer(folder, manifest)
    if tokenizer and stored.digest != tokenizer.digest:
        why = f"{stored.vocab_size} tokens there, {tokenizer.vocab_size} in the model's vocabulary"
        if isinstance(stored, CharTokenizer) and isinstance(tokenizer, CharTokenizer):
            odd = sorted(set(stored.chars) ^ set(tokenizer.chars))
            why += f"; in one of them only: {''.join(odd[:20])!r}" if odd else ""
        raise _mismatch("the prepared tokens have another vocabulary than the model", folder, why)
    tokens = _map(folder / TOKENS, manifest["dtype"])
    notes = []
    if not (full_scan := full_scan or tokens.nbytes <= MAX_FULL_SCAN):
        notes.append(_not_scanned(tokens, "`jaxmodels data inspect` checks them all"))
    elif _scan(tokens, progress)[0] != manifest["sha256"][TOKENS]:
        raise damaged(folder, f"{TOKENS} is not the one in the manifest")
    if unknown := manifest["unknown"]:
        share = unknown / manifest["tokens"]
        what = "characters" if isinstance(stored, CharTokenizer) else "tokens"
        name = unknown_name(stored)
        notes.append(f"{unknown:,} {what} ({share:.2%}) are {name}: not in the vocabulary")
    return TokenStream(
        tokens,
        stored,
        stored.vocab_size,
        {"text_sha256": manifest["source"]["sha256"]},
        tuple(notes),
        full_scan,
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
    """sha256 and largest token of a stream, or of its length and samples, in bounded memory."""
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
    """Notes, if the prepared tokens may be used for this spec: its text must be the same.

    Raises:
        DataProblem: (mismatch) the folder holds the tokens of another text; names the changes.
    """
    try:
        source = open_text(spec)
    except DataProblem as problem:
        if problem.exit_code == USAGE or manifest["spec"] != spec:
            raise
        return (f"{spec} is gone; using the tokens prepared from it in {folder}",)
    now, then = fingerprint(source, progress), manifest["source"]
    if now["sha256"] == then["sha256"]:
        return ()
    if manifest["spec"] != spec:
        why = f"they were prepared from {manifest['spec']}, not from {spec}"
    else:
        why = _changes(then["files"], now["files"])
    raise _mismatch("the text is not the one that the tokens were prepared from", folder, why)


def _changes(then: dict[str, int], now: dict[str, int]) -> str:
    """The differences between two tables of file sizes, a line each."""
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


def _mismatch(what: str, folder: Path, why: str) -> DataProblem:
    return DataProblem(
        what,
        where=str(folder),
        why=why,
        fix=f"use the prepared tokens with --data bin:{folder}, or start again in another folder",
        exit_code=MISMATCH,
    )
