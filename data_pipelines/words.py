"""A word-level tokeniser of a small vocabulary, as a tokenizer.json."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.ids import without_surrogates
from data_pipelines.subword import SubwordTokenizer
from data_pipelines.tokenizers import Tokenizer

END, UNKNOWN = "<|endoftext|>", "<UNK>"
_SPACE = "\u2581"  # starts a word that follows a space


def build_words(texts: Iterable[str], min_freq: int = 1) -> SubwordTokenizer:
    """The words and punctuation marks that occur at least `min_freq` times in all texts together.

    Text is lower-cased, and runs of white space become one space: `decode(encode(text))` is the
    text if it is normalised and the vocabulary has its words. Ids: end of text, unknown, then the
    words in order.
    """
    words = _frequent(SubwordTokenizer.from_json(_form({})), texts, min_freq)
    return SubwordTokenizer.from_json(_form({word: i for i, word in enumerate(words, start=2)}))


def with_new_words(
    tokenizer: Tokenizer, texts: Iterable[str], min_freq: int = 1
) -> SubwordTokenizer:
    """A tokeniser of words with those of further texts, whose ids follow the others.

    Raises:
        DataProblem: (usage) the tokens are not words.
    """
    if not isinstance(tokenizer, SubwordTokenizer) or not are_words(tokenizer):
        raise DataProblem(
            "new words cannot be added to this vocabulary",
            why="its tokens are not words",
            fix="leave out --new-words",
            exit_code=USAGE,
        )
    data = tokenizer.to_json()
    known, first = data["model"]["vocab"], tokenizer.vocab_size
    found = [word for word in _frequent(tokenizer, texts, min_freq) if word not in known]
    data["model"] |= {"vocab": known | {word: first + i for i, word in enumerate(found)}}
    return SubwordTokenizer.from_json(data, settings=tokenizer.settings)


def are_words(tokenizer: Tokenizer | None) -> bool:
    """Whether the tokens are words, to which `with_new_words` adds others."""
    return (
        isinstance(tokenizer, SubwordTokenizer)
        and tokenizer.to_json()["model"].get("type") == "WordLevel"
    )


def _frequent(tokenizer: SubwordTokenizer, texts: Iterable[str], min_freq: int) -> list[str]:
    """The words that occur at least `min_freq` times, sorted; split as the tokeniser does."""
    import tokenizers

    made = tokenizers.Tokenizer.from_str(tokenizer.content)
    counts: Counter[str] = Counter()
    for text in texts:
        plain = without_surrogates(text)
        normal = made.normalizer.normalize_str(plain) if made.normalizer else plain
        split = made.pre_tokenizer.pre_tokenize_str(normal) if made.pre_tokenizer else [(normal,)]
        counts.update(word for word, *_ in split)
    return sorted(word for word, times in counts.items() if times >= max(1, min_freq))


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
