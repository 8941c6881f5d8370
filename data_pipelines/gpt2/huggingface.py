"""GPT-2's tokeniser in Hugging Face's format: derived from the ranks, and recognised."""

import hashlib
import itertools
import json
from functools import cache
from typing import Any

from data_pipelines.gpt2.vocabulary import END_OF_TEXT, VOCAB, ranks

# sha256 of vocabulary and merges; recognises a file without deriving the merges (a second).
_CONTENT = "d87e6c52eb5ed462a6b806fdea23a777afd8e5ccef882a07bf7d4cb2dff5c1cf"


@cache
def _content() -> tuple[dict[str, int], list[list[str]]]:
    """(token → id, merges in the order of their ids), bytes written as characters."""
    known, letters = ranks(), _letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in known.items()}
    merges = [
        [spell(part) for part in _last_merge(token, rank, known)]
        for token, rank in sorted(known.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    return vocab | {END_OF_TEXT: VOCAB - 1}, merges


def tokenizer_json() -> dict[str, Any]:
    """A tokenizer.json that `tokenizers` reads, with GPT-2's ids."""
    vocab, merges = _content()
    end = {"id": VOCAB - 1, "content": END_OF_TEXT, "special": True}
    end |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": True},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def is_gpt2(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json maps as GPT-2 does, whatever its irrelevant fields."""
    model, before = data["model"], data.get("pre_tokenizer") or {}
    added = [(t["content"], t["id"], t["special"]) for t in data.get("added_tokens") or []]
    return (
        model.get("type", "BPE") == "BPE"
        and not any(
            model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and not data.get("normalizer")
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and before.get("use_regex", True)
        and (data.get("decoder") or {}).get("type") == "ByteLevel"
        and added == [(END_OF_TEXT, VOCAB - 1, True)]
        and content_digest(model["vocab"], model["merges"]) == _CONTENT
    )


def content_digest(vocab: dict[str, int], merges: list[Any]) -> str:
    """sha256 of a BPE vocabulary and its merges, which are "a b" in old files and pairs in new."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    rows = sorted(vocab.items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps([rows, pairs]).encode()).hexdigest()


def _last_merge(token: bytes, rank: int, known: dict[bytes, int]) -> list[bytes]:
    """The two parts merged into `token`: what the earlier merges leave of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pair_ranks = [known.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        at = pair_ranks.index(min(pair_ranks))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _letters() -> dict[int, str]:
    """Byte → the character that represents it (openai/gpt-2): itself if it is printable."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }
