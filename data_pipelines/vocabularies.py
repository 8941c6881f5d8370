"""Vocabularies made from a text: `jaxmodels data tokenizer`, and `--tokenizer bpe:4096`.

Both kinds of subwords work on the bytes of words as GPT-2 cuts them, and have all 256 bytes, so
that every text is encoded and comes back as it was. The text is streamed: memory holds the distinct
words with their counts. The same text gives the same file, in every process. BPE is Sennrich et al.
2016 (arXiv:1508.07909), Unigram Kudo 2018 (arXiv:1804.10959), both by the library `tokenizers`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from data_pipelines.characters import CharTokenizer
from data_pipelines.documents import first_documents
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.ids import without_surrogates
from data_pipelines.reading import Progress, Reading
from data_pipelines.sources import open_text
from data_pipelines.subword import SubwordTokenizer
from data_pipelines.tokenizer_safety import MAX_STRING, MAX_VOCABULARY

BPE, UNIGRAM, CHARACTERS, BYTES = "bpe", "unigram", "chars", "bytes"
KINDS = (BPE, UNIGRAM, CHARACTERS, BYTES)
END = "<|endoftext|>"

MOST = 10**9
"""Bytes of a text that are read to make a vocabulary, at most."""

_ALPHABET = 256  # bytes, each a token
_LONGEST = 64  # bytes of a token: runs of one sign may be long
_DIGITS_READ = 18  # of a number of tokens: more are too many anyway
_DIGITS = 6  # decimals of a Unigram score that are the same in every process
_STEP = 1e-4
_NAMED = re.compile(r"(bpe|unigram|chars|bytes)(?::(\d+))?")

Learned = CharTokenizer | SubwordTokenizer


class Wanted(NamedTuple):
    """A vocabulary to be made."""

    kind: str
    size: int
    """Tokens in all, at most."""


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


class SplitText:
    """The first part of each text, to learn from, and then what follows it, to measure on.

    Args:
        specs: of texts (no `bin:`, no `mix:`).
        held_out: share of the bytes of each, from the end, that is not learned from.
        most: bytes of each to read, at most.
        progress: called as (stage, bytes done, bytes in all).
    """

    def __init__(
        self, specs: Sequence[str], held_out: float, most: int, progress: Progress | None = None
    ):
        sources = [open_text(spec) for spec in specs]
        self._readers = [_Reader(_stream(source, progress)) for source in sources]
        self._sizes = [min(source.bytes, most) for source in sources]
        self._held_out = held_out
        self.bytes = 0
        """Bytes that were learned from."""

    def learned(self) -> Iterator[str]:
        """The first part of each text."""
        for reader, size in zip(self._readers, self._sizes, strict=True):
            for text in reader.take(size - int(self._held_out * size)):
                self.bytes += len(text.encode("utf-8", "surrogatepass"))
                yield text

    def measured(self) -> Iterator[str]:
        """What follows; to be read after `learned`."""
        for reader, size in zip(self._readers, self._sizes, strict=True):
            yield from reader.take(int(self._held_out * size))


def _stream(source: Any, progress: Progress | None) -> Iterator[str]:
    if "dataset" in source.records:
        return first_documents(source, source.records["examples"], progress)
    return iter(Reading(source, "learning a vocabulary", progress))


class _Reader:
    """Texts one after the other, of which so many bytes are taken at a time."""

    def __init__(self, texts: Iterator[str]):
        self._texts, self._rest = texts, ""

    def take(self, size: int) -> Iterator[str]:
        """The next `size` bytes, or all that is left."""
        while size > 0 and (text := self._rest or next(self._texts, None)) is not None:
            data = text.encode("utf-8", "surrogatepass")
            taken = text
            if len(data) > size:
                taken = data[:size].decode("utf-8", "ignore") or text[:1]
            self._rest = text[len(taken) :]
            size -= len(data) if not self._rest else size
            if taken:
                yield taken


def learn(
    texts: Iterable[str], want: Wanted, specials: Sequence[str] = (END,), min_freq: int = 1
) -> Learned:
    """A tokeniser with the vocabulary of some texts.

    Ids: special tokens, the bytes, then the other tokens, the most frequent first. It may have
    fewer tokens than wanted, if the texts do not have as many.

    Args:
        texts: pieces of text in order; words may go on from one to the next.
        want: kind and size.
        specials: special tokens, of which END separates documents; not of characters.
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
    """A tokeniser with the vocabulary of some texts, without the part that is held out.

    Raises:
        DataProblem: (usage) a spec is not of text; as `learn`.
    """
    if tokens := [spec for spec in specs if spec.startswith("bin:")]:
        raise DataProblem(
            f"no vocabulary of the kind {want.kind} can be made here",
            where=tokens[0],
            why="these are tokens already, not text",
            fix="leave out --tokenizer, or give the text",
            exit_code=USAGE,
        )
    text = SplitText(specs, held_out, MOST, progress)
    return learn(text.learned(), want, min_freq=min_freq)


def _trained(texts: Iterable[str], want: Wanted, specials: Sequence[str]) -> dict[str, Any]:
    """The part `model` of a tokenizer.json, by the library's trainer."""
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
    """The tokens of a Unigram in an order, and with scores, that every process finds.

    The library sums in the order of a table that differs between processes (a part in 10^14), and
    gives bytes that do not occur, in that order, scores of _STEP, 2 _STEP and so on above the
    least. Here these have one score, below all others.
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
    """Texts, and whether any of them was not empty."""

    def __init__(self, texts: Iterable[str]):
        self._texts, self.any = texts, False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.any = self.any or bool(text)
            yield text


def _words(texts: Iterable[str]) -> Iterator[str]:
    """The texts cut before white space, so that no word is cut where one ends."""
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
    """How a tokeniser does on a text."""

    bytes: int
    tokens: int
    gpt2_tokens: int
    unknown: int
    """Tokens that stand for what is not in the vocabulary."""


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
