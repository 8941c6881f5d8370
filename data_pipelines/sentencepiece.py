"""sentencepiece's `.model` files as a tokenizer.json: read as data, without its library.

The file is a protobuf message, read by a small reader with limits. The tokenizer.json is the one
that transformers' converter makes, with two differences: control tokens are not recognised in text,
as in sentencepiece, and the treatment of white space comes from the file, not from a model's class.

Sources: google/sentencepiece, `sentencepiece_model.proto`; transformers 5,
`convert_slow_tokenizer.py`.
"""

import base64
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import DataProblem
from data_pipelines.tokenizer_safety import MAX_VOCABULARY
from data_pipelines.tokenizer_settings import CONFIG, MAX_FILE, object_in
from data_pipelines.transformers_files import unknown
from jaxmodels.reading import read_limited

FILES = ("tokenizer.model", "spiece.model", "spm.model")
"""Usual names, of those in which ids are the model's own."""
SPACE = "\u2581"

# Classes of transformers that take the model's ids as they are.
_PLAIN = (None, "LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast")

_UNIGRAM, _BPE, _WORD, _CHAR = 1, 2, 3, 4
_MANY = 1000  # spaces at the start of a text, all of which are removed
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


class _Damaged(ValueError):
    """The bytes are not such a message."""


class Piece(NamedTuple):
    """A token: its text, its score and its kind."""

    text: str
    score: float
    kind: int


class _Model(NamedTuple):
    pieces: list[Piece]
    trainer: dict[int, Any]
    normaliser: dict[int, Any]


def sentencepiece_in(folder: Path) -> Path | None:
    """The model in a folder, if its ids are those of the tokeniser: some classes of transformers
    shift them."""
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None or not (folder / CONFIG).is_file():
        return found
    named = object_in(folder / CONFIG).get("tokenizer_class")
    return found if named in _PLAIN else None


def looks_like_model(path: Path) -> bool:
    """Whether a file begins as a sentencepiece model does: with a list of pieces."""
    with path.open("rb") as file:
        start = file.read(4)
    return len(start) == 4 and start[0] == 0x0A and start[2] == 0x0A and start[1] < 0x80


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer.json of a sentencepiece model, and its settings, as tokenizer_config.json.

    Raises:
        UnknownTokenizer: it cannot be expressed as a tokenizer.json.
        DataProblem: (corrupt) it is not a sentencepiece model, or damaged.
    """
    try:
        model = _parse(read_limited(path, MAX_FILE))
    except (OSError, ValueError, struct.error) as error:
        raise DataProblem(
            "this is not a sentencepiece model",
            where=str(path),
            why=str(error) or type(error).__name__,
            fix="give the .model file that sentencepiece wrote, or a tokenizer.json",
        ) from None
    return _form(model, path), _settings(model)


def _parse(data: bytes) -> _Model:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    for number, value in _fields(data):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise _Damaged(f"field {number} is no message")
        if number == 1:
            pieces.append(_piece(dict(_fields(value))))
        elif number == 2:
            trainer = _numbers(dict(_fields(value)), 3, 24, 40, 41, 42, 43)
        elif number == 3:
            normaliser = _numbers(dict(_fields(value)), 3, 4, 5)
            if not isinstance(normaliser.get(2, b""), bytes):
                raise _Damaged("field 2 is no string")
    if not 0 < len(pieces) <= MAX_VOCABULARY:
        raise _Damaged(f"it has {len(pieces):,} tokens")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise _Damaged("two of its tokens are the same")
    return _Model(pieces, trainer, normaliser)


def _numbers(fields: dict[int, Any], *known: int) -> dict[int, Any]:
    """The fields themselves, of which these must be numbers where they occur."""
    for number in known:
        if not isinstance(fields.get(number, 0), int):
            raise _Damaged(f"field {number} is no number")
    return fields


def _piece(fields: dict[int, Any]) -> Piece:
    text, score = fields.get(1), fields.get(2, b"\0" * 4)
    kind = _numbers(fields, 3).get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise _Damaged("a token has no text or no score")
    if not _NORMAL <= kind <= _BYTE:
        raise _Damaged(f"a token is of an unknown kind, {kind}")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], kind)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number, and an int or its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Damaged(f"a field of an unknown type, {wire}")
        if number == 0 or at + size > len(data):
            raise _Damaged("it is cut off, or is something else")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Damaged("it is cut off, or is something else")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Damaged("a number is too long")


def _form(model: _Model, path: Path) -> dict[str, Any]:
    kind = model.trainer.get(3, _UNIGRAM)
    unknowns = [i for i, piece in enumerate(model.pieces) if piece.kind == _UNKNOWN]
    if kind not in (_UNIGRAM, _BPE, _CHAR) or model.trainer.get(24, 0):
        what = "words" if kind == _WORD else "suffixes" if model.trainer.get(24) else str(kind)
        raise unknown(path, f"it is a sentencepiece model of {what}")
    if len(unknowns) != 1 or not model.normaliser.get(5, 1):
        raise unknown(path, "it has no unknown token, or does not mark spaces")
    if kind == _UNIGRAM and any(piece.kind == _UNUSED for piece in model.pieces):
        raise unknown(path, "some of its tokens are never used")

    def spaces(field: int) -> int:
        """Whether spaces are added (3) or removed (4), so that decoding depends on context."""
        return int(model.normaliser.get(field, 1))

    spaced = bool(spaces(3) or spaces(4))
    users = {i for i, piece in enumerate(model.pieces) if piece.kind == _USER}
    inside = {i for i in users if not (spaced and re.search(rf"\s|{SPACE}", model.pieces[i].text))}
    made = _unigram if kind == _UNIGRAM else _pairs
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": piece.text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": i in inside,
                "special": piece.kind != _USER,
            }
            for i, piece in enumerate(model.pieces)
            if piece.kind in (_UNKNOWN, _CONTROL, _USER)
        ],
        "normalizer": _normaliser(model.normaliser, [model.pieces[i].text for i in sorted(inside)]),
        "pre_tokenizer": _cuts(model),
        "post_processor": None,
        "decoder": _decoder(spaces(3), spaces(4)),
        "model": made(model, unknowns[0]),
    }


def _normaliser(spec: dict[int, Any], symbols: list[str]) -> dict[str, Any]:
    """The normaliser; `symbols` are tokens to be found in normalised text."""
    parts: list[dict[str, Any]] = []
    if charsmap := spec.get(2):
        text = base64.b64encode(charsmap).decode()
        parts.append({"type": "Precompiled", "precompiled_charsmap": text})
    if spec.get(4, 1):  # no spaces at the ends, and no runs of them
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            parts.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    if spec.get(3, 1):
        parts.append({"type": "Prepend", "prepend": SPACE})
    parts.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if spec.get(3, 1) and symbols:  # which are normalised, too, before they are looked for
        alone = rf"\A{SPACE}(?=(?:{'|'.join(map(_quoted, symbols))})\z)"
        parts.append({"type": "Replace", "pattern": {"Regex": alone}, "content": ""})
    return {"type": "Sequence", "normalizers": parts}


def _cuts(model: _Model) -> dict[str, Any] | None:
    """The pre-tokeniser: splits at spaces if no token spans one, and after the first character of
    text that looks like a token that may not be produced from text."""
    parts: list[dict[str, Any]] = []
    if not any(SPACE in piece.text[1:] for piece in model.pieces):
        space = {"replacement": SPACE, "prepend_scheme": "never", "split": True}
        parts.append({"type": "Metaspace", **space})
    kinds = (_UNKNOWN, _CONTROL)
    names = [p.text for p in model.pieces if p.kind in kinds and len(p.text) > 1]
    found = [rf"{_quoted(name[0])}(?={_quoted(name[1:])})" for name in names]
    if any(piece.kind == _BYTE for piece in model.pieces):
        found.append("<(?=0x[0-9A-F]{2}>)")
    if found and model.trainer.get(3, _UNIGRAM) == _UNIGRAM:
        pattern = {"Regex": "|".join(found)}
        cut = {"type": "Split", "pattern": pattern, "invert": False}
        parts.append(cut | {"behavior": "MergedWithPrevious"})
    return {"type": "Sequence", "pretokenizers": parts} if parts else None


def _quoted(text: str) -> str:
    """A text as an expression of it: Oniguruma's escapes."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


def _decoder(added: int, removed: int) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if added or removed:
        most = _MANY if removed else 1
        parts.append({"type": "Strip", "content": " ", "start": most, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


def _unigram(model: _Model, unk: int) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": unk,
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": any(piece.kind == _BYTE for piece in model.pieces),
    }


def _pairs(model: _Model, unk: int) -> dict[str, Any]:
    """BPE: sentencepiece merges the neighbours whose union has the best score."""
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    usable = {p.text: p.score for p in model.pieces if p.kind == _NORMAL}
    merges: list[tuple[float, int, int, str, str]] = []
    if model.trainer.get(3) == _BPE:
        for text, score in usable.items():
            for cut in range(1, len(text)):
                a, b = text[:cut], text[cut:]
                if a in usable and b in usable:
                    merges.append((-score, ids[a], ids[b], a, b))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[unk].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": any(piece.kind == _BYTE for piece in model.pieces),
        "ignore_merges": False,
        "vocab": ids,
        "merges": [[a, b] for _, _, _, a, b in sorted(merges)],
    }


def _settings(model: _Model) -> dict[str, Any]:
    """The tokens with a role, by the ids that the file gives them."""
    roles = {
        "unk_token": (40, 0),
        "bos_token": (41, 1),
        "eos_token": (42, 2),
        "pad_token": (43, -1),
    }
    found: dict[str, Any] = {"split_special_tokens": True}
    for role, (field, usual) in roles.items():
        at = model.trainer.get(field, usual)
        if 0 <= at < len(model.pieces) and model.pieces[at].kind in (_UNKNOWN, _CONTROL):
            found[role] = model.pieces[at].text
    return found
