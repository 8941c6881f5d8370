"""A word-level tokeniser of a small vocabulary, as a tokenizer.json."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipelines.ids import without_surrogates
from data_pipelines.subword import SubwordTokenizer

END, UNKNOWN = "<|endoftext|>", "<UNK>"
_SPACE = "\u2581"  # starts a word that follows a space


def build_words(texts: Iterable[str], min_freq: int = 1) -> SubwordTokenizer:
    """The words and punctuation marks that occur at least `min_freq` times in all texts together.

    Text is lower-cased, and runs of white space become one space: `decode(encode(text))` is the
    text if it is normalised and the vocabulary has its words. Ids: end of text, unknown, then the
    words in order.
    """
    import tokenizers

    made = tokenizers.Tokenizer.from_str(SubwordTokenizer.from_json(_form({})).content)
    counts: Counter[str] = Counter()
    for text in texts:
        normal = made.normalizer.normalize_str(without_surrogates(text))
        counts.update(word for word, _ in made.pre_tokenizer.pre_tokenize_str(normal))
    kept = sorted(word for word, times in counts.items() if times >= max(1, min_freq))
    return SubwordTokenizer.from_json(_form({word: i for i, word in enumerate(kept, start=2)}))


def _form(words: dict[str, int]) -> dict[str, Any]:
    """A tokenizer.json of these words."""
    space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always"}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": i, "content": name, "special": True, **plain}
        for i, name in enumerate((END, UNKNOWN))
    ]
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Lowercase"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                space | {"split": True},
                {"type": "Punctuation", "behavior": "Isolated"},
            ],
        },
        "post_processor": None,
        "decoder": space | {"split": True},
        "model": {
            "type": "WordLevel",
            "vocab": {END: 0, UNKNOWN: 1, **words},
            "unk_token": UNKNOWN,
        },
    }
