"""A tokeniser as llama.cpp knows it, in the keys of a GGUF file, and back.

Subwords by bytes (GPT-2's kind) are llama.cpp's "gpt2". Characters are its "llama", which looks up
single characters and joins only what is in the vocabulary: nothing (it refuses a text with a
character that is not in it). What llama.cpp needs no more
than approximately is kept whole under a key of our own for the way back.
"""

import json
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.tokenizers import CharTokenizer, Tokenizer, tokenizer_from_json

OURS = "jaxmodels.tokenizer"
_PREFIX = "tokenizer.ggml."
# llama.cpp's kinds of tokens.
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED = 1, 2, 3, 5
_SPACE = "\u2581"  # in the place of a blank in llama.cpp's "llama"

Keys = dict[str, Any]


def keys_of(tokenizer: Tokenizer | None, rows: int) -> Keys:
    """Key → value: strings, numbers, truths, and lists of strings or int32.

    Args:
        tokenizer: the model's.
        rows: of the embedding; ids without a token become unused ones.
    """
    if isinstance(tokenizer, CharTokenizer):
        return _with_prefix(_characters(tokenizer, rows)) | _kept(tokenizer)
    content = tokenizer.to_json() if tokenizer else {}
    if tokenizer is None or not _is_bytes(content):
        return _with_prefix({"model": "none"}) | (_kept(tokenizer) if tokenizer else {})
    keys = _with_prefix(_subwords(content, tokenizer, rows))
    return keys if isinstance(tokenizer, GPT2Tokenizer) else keys | _kept(tokenizer)


def tokenizer_in(keys: Keys, where: str) -> Tokenizer | None:
    """The tokeniser that `keys_of` kept; None where there is none of ours (GPT-2's is known).

    Raises:
        DataProblem: (corrupt) it cannot be used.
    """
    kept = keys.get(OURS)
    if not isinstance(kept, str):
        return None
    try:
        content = json.loads(kept)
    except (ValueError, RecursionError) as error:
        why = f"{OURS}: {str(error)[:200]}"
        raise DataProblem("its tokeniser cannot be read", where=where, why=why) from None
    return tokenizer_from_json(content, where)


def used(keys: Keys) -> int | None:
    """How many tokens stand before the unused ones; None where the file has no tokens."""
    kinds = keys.get(f"{_PREFIX}token_type")
    if not isinstance(kinds, list):
        return None
    return max((i + 1 for i, kind in enumerate(kinds) if kind != _UNUSED), default=0)


def _kept(tokenizer: Tokenizer) -> Keys:
    return {OURS: json.dumps(tokenizer.to_json(), ensure_ascii=False)}


def _with_prefix(keys: Keys) -> Keys:
    return {_PREFIX + name: value for name, value in keys.items()}


def _is_bytes(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json merges bytes as GPT-2's does, after GPT-2's cuts."""
    cuts = content.get("pre_tokenizer")
    return (
        content.get("model", {}).get("type") == "BPE"
        and not content.get("normalizer")
        and isinstance(cuts, dict)
        and cuts.get("type") == "ByteLevel"
        and cuts.get("use_regex", True)
        and not cuts.get("add_prefix_space")
    )


def _subwords(content: dict[str, Any], tokenizer: Tokenizer, rows: int) -> Keys:
    ids = {i: token for token, i in content["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in content.get("added_tokens", [])}
    named = {**ids, **special}
    tokens = [named.get(i, f"[PAD{i}]") for i in range(rows)]
    kinds = [_CONTROL if i in special else _NORMAL if i in ids else _UNUSED for i in range(rows)]
    merges = content["model"]["merges"]
    keys: Keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": kinds,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        "add_bos_token": False,
    }
    if (end := tokenizer.end_of_text) is not None:
        keys |= {"bos_token_id": end, "eos_token_id": end}
    return keys


def _characters(tokenizer: CharTokenizer, rows: int) -> Keys:
    known = [*tokenizer.specials, *(c if c != " " else _SPACE for c in tokenizer.chars)]
    tokens = [*known, *(f"[PAD{i}]" for i in range(len(known), rows))]
    kinds = [_NORMAL] * len(known) + [_UNUSED] * (rows - len(known))
    for i in range(len(tokenizer.specials)):
        kinds[i] = _UNKNOWN if i == tokenizer.unk_id else _CONTROL
    keys: Keys = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * rows,
        "token_type": kinds,
        "add_bos_token": False,
        "add_space_prefix": False,
        "unknown_token_id": tokenizer.unk_id,
    }
    if (pad := tokenizer.pad_id) is not None:
        # Else llama.cpp takes ids 1 and 2, which are characters.
        keys |= {"bos_token_id": pad, "eos_token_id": pad, "padding_token_id": pad}
    return keys
