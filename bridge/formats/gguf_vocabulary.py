"""Tokenisers as keys of a GGUF file, and back.

Byte-level BPE is llama.cpp's "gpt2". Characters are its "llama", which looks up single characters
and merges only pairs that are in the vocabulary: none (text with an unknown character is refused).
The tokeniser is also kept in full, under a key of our own, for the way back.
"""

import json
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.tokenizer_settings import settings_of
from data_pipelines.tokenizers import CharTokenizer, Tokenizer, tokenizer_from_json
from data_pipelines.transformers_files import byte_level, unknown

OURS, SETTINGS = "jaxmodels.tokenizer", "jaxmodels.tokenizer_config"
_PREFIX = "tokenizer.ggml."
# llama.cpp's kinds of tokens.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5
# llama.cpp's pre-tokenisers that split a text as GPT-2 does. (So do "mpt" and "olmo" there, but
# their tokenisers normalise the text first, which llama.cpp leaves out.)
_GPT2_CUTS = ("gpt-2", "phi-2", "jais")
# Roles of tokens: its name → transformers'.
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "seperator": "sep", "padding": "pad"}
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_SPACE = "\u2581"  # in the place of a blank in llama.cpp's "llama"

Keys = dict[str, Any]


def keys_of(tokenizer: Tokenizer | None, rows: int) -> Keys:
    """Key → value: strings, numbers, truths, and lists of strings or int32.

    Args:
        tokenizer: the model's.
        rows: of the embedding; ids without a token are marked as unused.
    """
    if isinstance(tokenizer, CharTokenizer):
        return _with_prefix(_characters(tokenizer, rows)) | _kept(tokenizer)
    content = tokenizer.to_json() if tokenizer else {}
    if tokenizer is None or not _is_bytes(content):
        return _with_prefix({"model": "none"}) | (_kept(tokenizer) if tokenizer else {})
    keys = _with_prefix(_subwords(content, tokenizer, rows))
    return keys | _kept(tokenizer)


def tokenizer_in(keys: Keys, where: str) -> Tokenizer | None:
    """The tokeniser that `keys_of` kept, or the one that llama.cpp would make of the keys.

    None where they hold no vocabulary.

    Raises:
        UnknownTokenizer: it is of a kind that is not read.
        DataProblem: (corrupt) it cannot be used.
    """
    kept, settings = keys.get(OURS), keys.get(SETTINGS, "")
    if isinstance(kept, str):
        try:
            content = json.loads(kept)
        except (ValueError, RecursionError) as error:
            why = f"{OURS}: {str(error)[:200]}"
            raise DataProblem("its tokeniser cannot be read", where=where, why=why) from None
        return tokenizer_from_json(content, where, _object(settings))
    stated = {key.removeprefix(_PREFIX): v for key, v in keys.items() if key.startswith(_PREFIX)}
    if stated.get("model", "none") == "none":
        return None
    if stated["model"] != "gpt2" or stated.get("pre", "gpt-2") not in _GPT2_CUTS:
        kind = f"{str(stated['model'])[:40]}, {str(stated.get('pre'))[:40]}"
        raise unknown(where, f"llama.cpp calls it {kind}")
    return tokenizer_from_json(_content(stated, where), where, _object(settings) or _ends(stated))


def notes_of(keys: Keys) -> list[str]:
    """Notes on what was assumed: files from before 2024 do not name the pre-tokeniser."""
    unstated = keys.get(f"{_PREFIX}model") == "gpt2" and f"{_PREFIX}pre" not in keys
    return (
        ["assumed: the tokeniser splits text as GPT-2's"] if unstated and OURS not in keys else []
    )


def used(keys: Keys) -> int | None:
    """The number of tokens before the unused ones; None if the file has no tokens."""
    kinds = keys.get(f"{_PREFIX}token_type")
    if not isinstance(kinds, list):
        return None
    return max((i + 1 for i, kind in enumerate(kinds) if kind != _UNUSED), default=0)


def listed(keys: Keys) -> int | None:
    """The number of tokens that the file lists, with the unused ones; None if it has no list."""
    tokens = keys.get(f"{_PREFIX}tokens")
    return len(tokens) if isinstance(tokens, list) else None


def _kept(tokenizer: Tokenizer) -> Keys:
    """The keys of our own for the way back; GPT-2's own vocabulary needs none."""
    known = isinstance(tokenizer, GPT2Tokenizer)
    content = {} if known else {OURS: json.dumps(tokenizer.to_json(), ensure_ascii=False)}
    settings = getattr(tokenizer, "settings", "")
    return content | ({SETTINGS: settings} if settings else {})


def _object(text: str) -> str:
    """The settings that a file kept, as we write them; TypeError or ValueError if they are not."""
    return json.dumps(settings_of(json.loads(text))) if text else ""


def _content(stated: Keys, where: str) -> dict[str, Any]:
    """tokenizer.json of subwords by bytes, from llama.cpp's lists."""
    tokens: Any = stated.get("tokens")
    merges: Any = stated.get("merges")
    kinds = stated.get("token_type", [_NORMAL] * len(tokens or ()))
    lists = (tokens, merges, kinds)
    if not all(isinstance(each, list) for each in lists) or len(kinds) != len(tokens):
        raise ValueError("the lists of tokens, types and merges are inconsistent")
    rows = zip(range(len(tokens)), tokens, kinds, strict=True)
    used = [row for row in rows if row[2] != _UNUSED]
    if len({token for _, token, _ in used}) < len(used):
        raise unknown(where, "a token occurs twice in its list")
    added = [
        {"id": i, "content": token, "special": kind != _USER, **_PLAIN}
        for i, token, kind in used
        if kind in (_UNKNOWN, _CONTROL, _USER) and token
    ]
    content = byte_level({token: i for i, token, _ in used}, [merge.split(" ") for merge in merges])
    if not added:  # the list need not say which token ends a text
        ends = {stated.get(f"{role}_token_id") for role in _ROLES}
        added = [
            {"id": i, "content": t, "special": True, **_PLAIN} for i, t, _ in used if i in ends
        ]
    return content | {"added_tokens": added}


def _ends(stated: Keys) -> str:
    """Settings of the tokens that have a role."""
    tokens = stated["tokens"]
    ids = {role: stated.get(f"{role}_token_id") for role in _ROLES}
    names = {
        f"{name}_token": tokens[i]
        for (_, i), name in zip(ids.items(), _ROLES.values(), strict=True)
        if type(i) is int and i < len(tokens)
    }
    return json.dumps(names)  # even if empty, or transformers would treat them as text


def _with_prefix(keys: Keys) -> Keys:
    return {_PREFIX + name: value for name, value in keys.items()}


def _is_bytes(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is a byte-level BPE with GPT-2's pre-tokeniser."""
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
    added = {entry["id"]: entry for entry in content.get("added_tokens", [])}
    named = ids | {i: entry["content"] for i, entry in added.items()}
    tokens = [named.get(i, f"[PAD{i}]") for i in range(rows)]
    kinds = [_NORMAL if i in ids else _UNUSED for i in range(rows)]
    for i, entry in added.items():
        kinds[i] = _CONTROL if entry["special"] else _USER
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
        # By default llama.cpp takes ids 1 and 2, which are characters here.
        keys |= {"bos_token_id": pad, "eos_token_id": pad, "padding_token_id": pad}
    return keys
