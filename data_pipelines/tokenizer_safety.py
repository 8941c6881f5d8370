"""Checks that an untrusted tokenizer.json takes bounded time and memory, before it is used.

A few lines of it can make texts grow without bound (chained replacements), or search for years
(nested repetitions). Its form is checked; what has expressions is also tried in a process with
limits (`tokenizer_trial`).
"""

from collections.abc import Iterator
from typing import Any

from data_pipelines import expressions
from data_pipelines.errors import UNSAFE, DataProblem
from data_pipelines.tokenizer_trial import trial_fault

MAX_GROWTH = 100  # factor by which a text may grow before it is cut into tokens, or after
MAX_PARTS = 200  # of a chain
MAX_VOCABULARY = 1_000_000  # tokens, and as many merges; the largest published have 300,000
MAX_ADDED, MANY_ADDED = 20_000, 5_000  # added tokens, searched for in every text
MAX_STRING = 1_000  # characters of a prefix or suffix of words, and of a Unigram token
MAX_WORD = 1_000  # characters of a word that WordPiece tries all parts of

_PARTS = {
    "normalizer": "BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Sequence Lowercase Nmt "
    "Precompiled Replace Prepend ByteLevel",
    "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Metaspace Whitespace Sequence "
    "Split Punctuation WhitespaceSplit Digits UnicodeScripts FixedLength",
    "post_processor": "RobertaProcessing BertProcessing ByteLevel TemplateProcessing Sequence",
    "decoder": "BPEDecoder ByteLevel WordPiece Metaspace CTC Sequence Replace Fuse Strip "
    "ByteFallback",
}
# Parts that need no trial: a single pass over the text, without dangerous settings.
_PLAIN = set(
    "Sequence ByteLevel Metaspace Whitespace WhitespaceSplit BertPreTokenizer BertNormalizer NFC "
    "NFD NFKC NFKD Lowercase StripAccents Nmt Punctuation Digits UnicodeScripts Fuse ByteFallback "
    "BertProcessing RobertaProcessing TemplateProcessing".split()
)
_CHAINS = ("normalizers", "pretokenizers", "processors", "decoders")


def check_bounded(data: dict[str, Any], where: str = "") -> None:
    """Checks that texts are encoded and decoded in time and memory bounded by their length.

    Args:
        data: the parsed tokenizer.json. `tokenizers` refuses parts of wrong types.
        where: names the file in errors.

    Raises:
        DataProblem: (unsafe) it may take forever, or all memory.
    """
    fault = _fault(data)
    if not fault and _must_be_tried(data):
        fault = trial_fault(data, _alphabet(data))
    if fault:
        raise DataProblem(
            "this tokenizer.json is not safe to use",
            where=where,
            why=fault,
            fix="get the tokeniser from where the model was published",
            exit_code=UNSAFE,
        )


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """The parts of a chain and of chains in it; a single part is a chain of one."""
    waiting = [value]
    for _ in range(MAX_PARTS):
        if not waiting:
            return
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            for name in _CHAINS:
                inside = part.get(name)
                waiting += inside if isinstance(inside, list) else []
    yield {"type": "a chain that is too long"}


def _fault(data: dict[str, Any]) -> str:
    """What is wrong with its form; empty if nothing."""
    for place, known in _PARTS.items():
        growth = 1.0
        for part in _parts(data.get(place)):
            kind = part.get("type")
            if not isinstance(kind, str) or kind not in known.split():
                return f"its {place} has a part of an unknown type: {str(kind)[:80]!r}"
            growth *= _growth(part)
            if growth > MAX_GROWTH:
                return f"its {place} may make a text more than {MAX_GROWTH} times as long"
            if why := expressions.fault(_expression(part)):
                return f"an expression in its {place} may take forever: {why}"
            if any(_is_long(part[name]) for name in part if name != "precompiled_charsmap"):
                return f"its {place} adds more than {MAX_STRING:,} characters at once"
    added, model = data.get("added_tokens"), data.get("model")
    if isinstance(added, list) and len(added) > MAX_ADDED:
        return f"it has {len(added):,} added tokens, which are searched for in every text"
    return _model_fault(model) if isinstance(model, dict) else ""


def _model_fault(model: dict[str, Any]) -> str:
    """`_fault` of the model, which cuts words into tokens."""
    tokens = model.get("vocab")
    for name in ("vocab", "merges"):
        held = model.get(name)
        if isinstance(held, dict | list) and len(held) > MAX_VOCABULARY:
            return f"its {name} has {len(held):,} entries"
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MAX_WORD:
        return f"it tries all parts of words of {longest:,} characters"
    rows = tokens if isinstance(tokens, list) else []  # of Unigram: a token and its score
    pieces = [row[0] for row in rows if isinstance(row, list) and row]
    if any(map(_is_long, (*model.values(), *pieces))):
        return f"it has a token of more than {MAX_STRING:,} characters"
    return ""


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > MAX_STRING


def _growth(part: dict[str, Any]) -> float:
    """The factor by which a text may grow."""
    if part.get("type") == "TemplateProcessing":
        single = part.get("single")
        pieces = single if isinstance(single, list) else []
        return max(
            1.0, 1.0 * sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces)
        )
    if part.get("type") != "Replace":
        return 1.0
    content, pattern = part.get("content"), part.get("pattern")
    length = len(content) if isinstance(content, str) else 0
    words = pattern.get("String") if isinstance(pattern, dict) else pattern
    # An expression, or an empty text, may match between any two characters.
    return max(1.0, length / len(words)) if isinstance(words, str) and words else 1.0 + length


def _expression(part: dict[str, Any]) -> str:
    pattern = part.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else ""


def _must_be_tried(data: dict[str, Any]) -> bool:
    kinds = {str(part.get("type")) for place in _PARTS for part in _parts(data.get(place))}
    added = data.get("added_tokens")
    return not kinds <= _PLAIN or (isinstance(added, list) and len(added) > MANY_ADDED)


def _alphabet(data: dict[str, Any]) -> str:
    """Characters in its expressions."""
    texts = [_expression(part) for place in _PARTS for part in _parts(data.get(place))]
    return "".join(dict.fromkeys("".join(texts)))
