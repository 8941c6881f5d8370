"""One token for each character. Sources: the character tokenisers of seeds 002 and 000."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from data_pipelines.errors import DataProblem
from data_pipelines.ids import checked_ids
from jaxmodels.files import write_text
from jaxmodels.reading import read_limited

CHARACTERS = "characters.json"
"""Name of a character vocabulary in the folders that carry one."""

MAX_CHARACTERS = 48_000_000
"""Bytes of such a file; that of the 160,000 characters which Unicode assigns has ten million."""


@dataclass(frozen=True)
class CharTokenizer:
    """One token for each character. Ids: the special tokens first, then the characters."""

    chars: tuple[str, ...]
    """The vocabulary, in the order of the ids."""
    min_freq: int = 1
    """How often a character had to occur to enter the vocabulary."""
    specials: tuple[str, ...] = ("<PAD>", "<UNK>")
    """Tokens that no text gives, in the order of the ids; `<UNK>` stands for other characters.
    Without any, as in seed 000, the first character stands for the others."""

    FILE: ClassVar[str] = CHARACTERS
    """Name of its file in a folder."""
    end_of_text: ClassVar[None] = None
    """There is no such token; a blank line stands between documents."""

    @classmethod
    def build(cls, texts: Iterable[str], min_freq: int = 1) -> "CharTokenizer":
        """The sorted characters that occur at least `min_freq` times in all texts together."""
        counts = np.zeros(0x110000, np.int64)
        for text in texts:
            found = np.bincount(_code_points(text))
            counts[: len(found)] += found
        kept = np.flatnonzero(counts >= max(1, min_freq))
        return cls(tuple(map(chr, kept.tolist())), min_freq)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.specials) + len(self.chars)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are no character."""
        return tuple(range(len(self.specials)))

    @property
    def unk_id(self) -> int:
        """Id of every character that is not in the vocabulary."""
        return self.specials.index("<UNK>") if self.specials else 0

    @property
    def pad_id(self) -> int | None:
        """Id of padding; None in the seed's vocabularies that were built without it."""
        return self.specials.index("<PAD>") if "<PAD>" in self.specials else None

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """One id for each character."""
        return self._table.take(_code_points(text), mode="clip")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids (any sequence or array); a special token gives its name.

        Raises:
            DataProblem: (mismatch) an id is not in the vocabulary.
        """
        return "".join(self._strings[checked_ids(ids, self.vocab_size)].tolist())

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of the text that are not in the vocabulary, first one first."""
        known = set(self.chars)
        return [char for char in dict.fromkeys(text) if char not in known]

    def safe_cut(self, text: str) -> int:
        """How many leading characters give the same ids whatever follows them: all."""
        return len(text)

    @cached_property
    def digest(self) -> str:
        """Identity of the mapping: sha256 of special tokens and characters."""
        content = json.dumps([self.specials, self.chars])
        return "characters:" + hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The seed's own format."""
        special = {token: i for i, token in enumerate(self.specials)}
        ids = {char: i for i, char in enumerate(self.chars, start=len(special))}
        return {
            "special_tokens": special,
            "min_freq": self.min_freq,
            "chars": list(self.chars),
            "vocab_size": self.vocab_size,
            "char_to_int": ids,
            "int_to_char": {str(i): token for token, i in (special | ids).items()},
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "") -> "CharTokenizer":
        """Reads the seed's format, or a bare list of characters in the order of their ids.

        Args:
            data: the parsed file. A list has no special tokens: seed 000 keeps its vocabulary so,
                in memory only, as the sorted characters of its text.
            where: names the file in errors.

        Raises:
            DataProblem: (corrupt) a key is missing, unknown or of the wrong type, a list holds
                what is not one character, or the ids do not number the special tokens and then
                the characters from 0 on.
        """
        if isinstance(data, list):
            if fault := "the list is empty" if not data else _wrong_chars(data):
                raise _broken(fault, where)
            return cls(tuple(data), specials=())
        if fault := _wrong_form(data):
            raise _broken(fault, where)
        special = data["special_tokens"]
        made = cls(
            chars=tuple(data["chars"]),
            min_freq=data["min_freq"],
            specials=tuple(sorted(special, key=special.__getitem__)),
        )
        for key, expected in made.to_json().items():
            if data[key] != expected:
                fault = f"{key} does not follow from special_tokens and chars"
                raise _broken(fault + _difference(data[key], expected), where)
        return made

    def save(self, path: Path | str) -> None:
        """Writes the seed's JSON, as `path` or into the folder `path`; whole or not at all."""
        path = Path(path)
        write_text(path / self.FILE if path.is_dir() else path, json.dumps(self.to_json()) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "CharTokenizer":
        """Reads a file that this class or the seed wrote; raises as `from_json`."""
        try:
            data = json.loads(read_limited(Path(path), MAX_CHARACTERS))
        except (ValueError, RecursionError) as error:
            raise _broken(f"it is not JSON: {error}", str(path)) from None
        return cls.from_json(data, str(path))

    @cached_property
    def _table(self) -> np.ndarray:
        """Code point → id; the last entry answers for all code points beyond."""
        table = np.full(max(map(ord, self.chars), default=0) + 2, self.unk_id, np.int32)
        for i, char in enumerate(self.chars, start=len(self.specials)):
            table[ord(char)] = i
        return table

    @cached_property
    def _strings(self) -> np.ndarray:
        return np.array([*self.specials, *self.chars], dtype=object)


def _code_points(text: str) -> np.ndarray:
    # Lone surrogates reach us from a command line whose bytes were not valid UTF-8.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4")


def _wrong_form(data: Any) -> str:
    """Why `data` cannot be a vocabulary at all; empty if it can."""
    keys = CharTokenizer(()).to_json().keys()
    if not isinstance(data, dict) or data.keys() != keys:
        return f"it must be a list of characters or a mapping with the keys {', '.join(keys)}"
    special, chars = data["special_tokens"], data["chars"]
    if not isinstance(special, dict) or not all(isinstance(i, int) for i in special.values()):
        return f"special_tokens does not map tokens to ids: {repr(special)[:200]}"
    if special and "<UNK>" not in special:
        return "special_tokens has no <UNK>"
    if not isinstance(data["min_freq"], int):
        return f"min_freq is not a number: {repr(data['min_freq'])[:80]}"
    if not isinstance(chars, list):
        return "chars is not a list"
    if not special and not chars:
        return "it is empty"
    return _wrong_chars(chars) or _in_both(special, chars)


def _wrong_chars(chars: list[Any]) -> str:
    """Why a list is not one of different characters; empty if it is."""
    seen = set()
    for char in chars:
        if not (isinstance(char, str) and len(char) == 1):
            return f"its characters hold {repr(char)[:80]}, which is not one character"
        if char in seen:
            return f"the character {char!r} occurs twice"
        seen.add(char)
    return ""


def _in_both(special: dict[str, int], chars: list[str]) -> str:
    both = [char for char in chars if char in special]
    return f"{both[0]!r} occurs twice: in special_tokens and chars" if both else ""


def _difference(found: Any, expected: Any) -> str:
    """Points at what is not as it must be: the value, or the first entry of a mapping."""
    if not isinstance(expected, dict):
        return f": it is {repr(found)[:200]}, not {repr(expected)[:200]}"
    if not isinstance(found, dict):
        return ": it is not a mapping"
    for key in expected:
        if found.get(key) != expected[key]:
            return f": {key!r} is {repr(found.get(key))[:80]}, not {expected[key]!r}"
    odd = next(key for key in found if key not in expected)
    return f": {odd[:80]!r} is one too many"


def _broken(why: str, where: str) -> DataProblem:
    return DataProblem(
        "this is not a character vocabulary",
        where=where,
        why=why,
        fix="give the file that was written beside the checkpoint or the tokens, or a JSON list "
        "of the characters in the order of their ids",
    )
