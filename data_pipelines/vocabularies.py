"""Vocabularies learned from a text: `jaxmodels data tokenizer`, and `--tokenizer bpe:4096`.

Both kinds of subwords are byte-level, with GPT-2's pre-tokeniser and all 256 bytes, so any text can
be encoded and decoded without loss. The text is streamed: memory holds distinct words and their
counts. The same text gives the same file in every process. BPE is Sennrich et al. 2016
(arXiv:1508.07909), Unigram Kudo 2018 (arXiv:1804.10959), both from the library `tokenizers`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.ids import without_surrogates
from data_pipelines.reading import Progress
from data_pipelines.split_text import SplitText
from data_pipelines.subword import SubwordTokenizer
from data_pipelines.tokenizer_safety import MAX_STRING, MAX_VOCABULARY

BPE, UNIGRAM, CHARACTERS, BYTES = "bpe", "unigram", "chars", "bytes"
KINDS = (BPE, UNIGRAM, CHARACTERS, BYTES)
END = "<|endoftext|>"

MOST = 10**9
"""Maximum number of bytes of a text that a vocabulary is learned from."""

_ALPHABET = 256  # bytes, each a token
_LONGEST = 64  # bytes of a token, since runs of one character may be long
_DIGITS_READ = 18  # of a number of tokens: more are too many anyway
_DIGITS = 6  # decimals of a Unigram score that are the same in every process
_STEP = 1e-4
_NAMED = re.compile(r"(bpe|unigram|chars|bytes)(?::(\d+))?")

Learned = CharTokenizer | SubwordTokenizer


class Wanted(NamedTuple):
    """A vocabulary to learn."""

    kind: str
    size: int
    """Maximum number of tokens."""


def wanted(name: str) -> Wanted | None:
    """What a recipe's tokeniser such as "bpe:4096" asks for; None if it is something else.

    Raises:
        DataProblem: (usage) the number is missing, or too small.
    """
    found = _NAMED.fullmatch(name)
    if found is None or name == CHARACTERS:
        return None
    if found[2] is None and found[1] != BYTES:
        raise DataProblem(
            f"the tokeniser {name} needs a number of tokens",
            fix=f"for example {name}:4096",
            exit_code=USAGE,
        )
    digits = found[2] or str(_ALPHABET + 1)
    return check(Wanted(found[1], int(digits[:_DIGITS_READ])))


def check(want: Wanted, specials: int = 1) -> Wanted:
    """Refuses a vocabulary without room for bytes and special tokens, or larger than any that is
    read.

    Raises:
        DataProblem: (usage) it is too small or too large.
    """
    if want.size > MAX_VOCABULARY:
        raise DataProblem(
            f"a vocabulary of {want.size:,} is too large",
            why=f"at most {MAX_VOCABULARY:,} tokens are read",
            fix="ask for fewer: 4,096 suit a model of a few million parameters, GPT-2 has 50,257",
            exit_code=USAGE,
        )
    least = 3 if want.kind == CHARACTERS else _ALPHABET + specials
    if want.size < least:
        what = (
            "<PAD>, <UNK> and a character"
            if want.kind == CHARACTERS
            else (
                f"the {_ALPHABET} bytes and {specials} special "
                + ("token" if specials == 1 else "tokens")
            )
        )
        raise DataProblem(
            f"a vocabulary of {want.size} is too small",
            why=f"{what} are {least}",
            fix=f"ask for {least} or more",
            exit_code=USAGE,
        )
    return want


def learn(
    texts: Iterable[str], want: Wanted, specials: Sequence[str] = (END,), min_freq: int = 1
) -> Learned:
    """A tokeniser with a vocabulary learned from some texts.

    Ids: special tokens, the bytes, then the other tokens, the most frequent first. There may be
    fewer tokens than wanted, if the texts do not have enough.

    Args:
        texts: pieces of text in order; a word may span two of them.
        want: kind and size.
        specials: special tokens, of which END separates documents; not used for characters.
        min_freq: how often a character must occur.

    Raises:
        DataProblem: (usage) the size is too small or too large, or a special token cannot be one;
            (corrupt) there is no text.
    """
    check(want, len(specials))
    if want.kind == CHARACTERS:
        made = CharTokenizer.build(texts, min_freq, want.size - 2)
        if not made.chars:
            raise DataProblem("the text is empty", fix="give a longer text")
        return made
    _check_specials(specials)
    bytes_only = want.kind == BYTES
    model = _byte_model(specials) if bytes_only else _trained(_words(texts), want, specials)
    return SubwordTokenizer.from_json(_form(model, specials))


def _check_specials(specials: Sequence[str]) -> None:
    """Refuses special tokens that the library cannot take, or that are the sign of a byte.

    Raises:
        DataProblem: (usage) there are some.
    """
    from tokenizers import pre_tokenizers

    if len(set(specials)) < len(specials) or not all(specials):
        raise DataProblem("special tokens must differ, and not be empty", exit_code=USAGE)
    signs = set(pre_tokenizers.ByteLevel.alphabet())
    for token in specials:
        why = ""
        if token in signs:
            why = "it stands for a byte in the vocabulary, so ordinary text would become it"
        elif len(token) > MAX_STRING:
            why = f"it has {len(token):,} characters, and at most {MAX_STRING:,} are read"
        elif without_surrogates(token) != token:
            why = "it is not Unicode text"
        if why:
            shown = ascii(token if len(token) <= 40 else f"{token[:40]}…")
            raise DataProblem(
                f"{shown} cannot be a special token",
                why=why,
                fix="use names that no text contains, such as <|name|>",
                exit_code=USAGE,
            )


def learn_from(
    specs: Sequence[str],
    want: Wanted,
    held_out: float = 0.0,
    min_freq: int = 1,
    progress: Progress | None = None,
) -> Learned:
    """A tokeniser with a vocabulary learned from some texts, without the part that is held out.

    Raises:
        DataProblem: (usage) a spec is not of text; as `learn`.
    """
    if tokens := [spec for spec in specs if spec.startswith("bin:")]:
        raise DataProblem(
            f"no {want.kind} vocabulary can be learned here",
            where=tokens[0],
            why="these are tokens already, not text",
            fix="leave out --tokenizer, or give the text",
            exit_code=USAGE,
        )
    text = SplitText(specs, held_out, MOST, progress)
    return learn(text.learned(), want, min_freq=min_freq)


def _trained(texts: Iterable[str], want: Wanted, specials: Sequence[str]) -> dict[str, Any]:
    """The part `model` of a tokenizer.json, from the library's trainer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {
        "vocab_size": want.size,
        "special_tokens": list(specials),
        "initial_alphabet": alphabet,
        "show_progress": False,
    }
    if want.kind == BPE:
        made = Tokenizer(models.BPE())
        trainer: Any = trainers.BpeTrainer(min_frequency=2, max_token_length=_LONGEST, **options)
    else:
        made = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**options)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    seen = _Seen(texts)
    made.train_from_iterator(seen, trainer)
    if not seen.any:
        raise DataProblem("the text is empty", fix="give a longer text")
    model: dict[str, Any] = json.loads(made.to_str())["model"]
    if want.kind == UNIGRAM:
        model["vocab"] = _settled(model["vocab"], specials, set(alphabet))
    return model


def _settled(
    vocab: list[list[Any]], specials: Sequence[str], alphabet: set[str]
) -> list[list[Any]]:
    """The tokens of a Unigram in an order, and with scores, that are the same in every process.

    The library sums in the order of a hash table, which differs between processes (by a part in
    10^14), and in that order gives bytes that do not occur scores of _STEP, 2 _STEP, … above the
    lowest. Here these get one score, below all others.
    """
    scores = {token: score for token, score in vocab if token not in specials}
    least = min(scores.values(), default=0.0)
    for token, score in scores.items():
        steps = (score - least) / _STEP
        absent = token in alphabet and steps < _ALPHABET + 1 and abs(steps - round(steps)) < 1e-3
        scores[token] = round(least - 1 if absent else score, _DIGITS)
    first = [[token, 0.0] for token in specials]
    bytes_ = sorted(alphabet)
    others = sorted((t for t in scores if t not in alphabet), key=lambda t: (-scores[t], t))
    return first + [[token, scores[token]] for token in (*bytes_, *others)]


def _byte_model(specials: Sequence[str]) -> dict[str, Any]:
    from tokenizers import pre_tokenizers

    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []}


def _form(model: dict[str, Any], specials: Sequence[str]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True, **plain}
            for i, token in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": True},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": model,
    }


class _Seen:
    """An iterable of texts that records whether any was not empty."""

    def __init__(self, texts: Iterable[str]):
        self._texts, self.any = texts, False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.any = self.any or bool(text)
            yield text


def _words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, divided again before white space, so that no word spans two of them."""
    rest = ""
    for text in texts:
        rest += without_surrogates(text)
        cut = max(rest.rfind(" "), rest.rfind("\n"))
        while cut > 0 and rest[cut - 1].isspace():
            cut -= 1
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


class Measure(NamedTuple):
    """How well a tokeniser compresses a text."""

    bytes: int
    tokens: int
    gpt2_tokens: int
    unknown: int
    """Tokens for text that is not in the vocabulary."""


def measure(tokenizer: Any, texts: Iterable[str]) -> Measure:
    """Bytes of a text, and its tokens by a tokeniser and by GPT-2's."""
    from data_pipelines.gpt2 import GPT2Tokenizer
    from data_pipelines.tokenizers import count_unknown

    gpt2, size, tokens, theirs, unknown = GPT2Tokenizer(), 0, 0, 0, 0
    for text in _words(texts):
        ids = tokenizer.encode(text)
        size += len(text.encode())
        tokens += len(ids)
        theirs += len(gpt2.encode(text))
        unknown += count_unknown(tokenizer, text, ids)
    return Measure(size, tokens, theirs, unknown)
