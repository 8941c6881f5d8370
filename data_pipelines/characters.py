"""One token per character. Sources: the character tokenisers of seeds 002 and 000."""

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
"""File name of a character vocabulary."""

MAX_CHARACTERS = 48_000_000
"""Largest such file in bytes; the 160,000 characters that Unicode assigns take ten million."""


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character. Ids: the special tokens first, then the characters."""

    chars: tuple[str, ...]
    """The vocabulary in the order of the ids."""
    min_freq: int = 1
    """How often a character had to occur to enter the vocabulary."""
    specials: tuple[str, ...] = ("<PAD>", "<UNK>")
    """Tokens that are never part of a text, in the order of the ids; `<UNK>` replaces characters
    that are not in the vocabulary. Without special tokens, as in seed 000, the first character
    does. Seed 000 stores no vocabulary: it is the sorted characters of the first 1,000 documents
    of allenai/c4 en in its order, which `--vocab` takes as a JSON list."""

    FILE: ClassVar[str] = CHARACTERS
    """Name of its file in a folder."""
    end_of_text: ClassVar[None] = None
    """There is no such token; documents are separated by a blank line."""

    @classmethod
    def build(
        cls, texts: Iterable[str], min_freq: int = 1, most: int | None = None
    ) -> "CharTokenizer":
        """The sorted characters that occur at least `min_freq` times in all texts together; of more
        than `most` the most frequent."""
        counts = np.zeros(0x110000, np.int64)
        for text in texts:
            found = np.bincount(_code_points(text))
            counts[: len(found)] += found
        kept = np.flatnonzero(counts >= max(1, min_freq))
        if most is not None:
            kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:most]])
        return cls(tuple(map(chr, kept.tolist())), min_freq)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.specials) + len(self.chars)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of special tokens."""
        return tuple(range(len(self.specials)))

    @property
    def unk_id(self) -> int:
        """Id of every character that is not in the vocabulary."""
        return self.specials.index("<UNK>") if self.specials else 0

    @property
    def pad_id(self) -> int | None:
        """Id of padding; None in upstream vocabularies built without it."""
        return self.specials.index("<PAD>") if "<PAD>" in self.specials else None

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """One id for each character."""
        return self._table.take(_code_points(text), mode="clip")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids (any sequence or array); special tokens by name.

        Raises:
            DataProblem: (mismatch) an id is not in the vocabulary.
        """
        return "".join(self._strings[checked_ids(ids, self.vocab_size)].tolist())

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of a text that are not in the vocabulary, in order."""
        known = set(self.chars)
        return [char for char in dict.fromkeys(text) if char not in known]

    def safe_cut(self, text: str) -> int:
        """Number of leading characters whose ids do not depend on what follows: all."""
        return len(text)

    @cached_property
    def digest(self) -> str:
        """Identity of the mapping: sha256 of special tokens and characters."""
        content = json.dumps([self.specials, self.chars])
        return "characters:" + hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Seed 002's format."""
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
        """Reads seed 002's format, or a list of characters in the order of their ids.

        Args:
            data: the parsed file. A list has no special tokens, as seed 000's vocabularies.
            where: names the file in errors.

        Raises:
            DataProblem: (corrupt) a key is missing, unknown or of the wrong type, an entry is not
                one character, or the ids do not number the special tokens and then the characters
                from 0 on.
        """
        if isinstance(data, list):
            if fault := "the list is empty" if not data else _character_fault(data):
                raise _broken(fault, where)
            return cls(tuple(data), specials=())
        if fault := _structure_fault(data):
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
        """Writes seed 002's JSON atomically, to `path` or into the folder `path`."""
        path = Path(path)
        write_text(path / self.FILE if path.is_dir() else path, json.dumps(self.to_json()) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "CharTokenizer":
        """Reads a file written by this class or seed 002; raises as `from_json`."""
        try:
            data = json.loads(read_limited(Path(path), MAX_CHARACTERS))
        except (ValueError, RecursionError) as error:
            raise _broken(f"it is not JSON: {error}", str(path)) from None
        return cls.from_json(data, str(path))

    @cached_property
    def _table(self) -> np.ndarray:
        """Code point → id; the last entry is for all higher code points."""
        table = np.full(max(map(ord, self.chars), default=0) + 2, self.unk_id, np.int32)
        for i, char in enumerate(self.chars, start=len(self.specials)):
            table[ord(char)] = i
        return table

    @cached_property
    def _strings(self) -> np.ndarray:
        return np.array([*self.specials, *self.chars], dtype=object)


def _code_points(text: str) -> np.ndarray:
    # Lone surrogates come from a command line that is not valid UTF-8.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4")


def _structure_fault(data: Any) -> str:
    """What is wrong with the structure of `data`; empty if nothing."""
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
    return _character_fault(chars) or _overlap_fault(special, chars)


def _character_fault(chars: list[Any]) -> str:
    """Why a list does not hold distinct characters; empty if it does."""
    seen = set()
    for char in chars:
        if not (isinstance(char, str) and len(char) == 1):
            return f"its characters hold {repr(char)[:80]}, which is not one character"
        if char in seen:
            return f"the character {char!r} occurs twice"
        seen.add(char)
    return ""


def _overlap_fault(special: dict[str, int], chars: list[str]) -> str:
    both = [char for char in chars if char in special]
    return f"{both[0]!r} occurs twice: in special_tokens and chars" if both else ""


def _difference(found: Any, expected: Any) -> str:
    """The difference to the expected value, or the first one between two mappings."""
    if not isinstance(expected, dict):
        return f": it is {repr(found)[:200]}, not {repr(expected)[:200]}"
    if not isinstance(found, dict):
        return ": it is not a mapping"
    for key in expected:
        if found.get(key) != expected[key]:
            return f": {key!r} is {repr(found.get(key))[:80]}, not {expected[key]!r}"
    odd = next(key for key in found if key not in expected)
    return f": {odd[:80]!r} is unexpected"


def _broken(why: str, where: str) -> DataProblem:
    return DataProblem(
        "this is not a character vocabulary",
        where=where,
        why=why,
        fix="give the file written with the checkpoint or the tokens, or a JSON list "
        "of the characters in the order of their ids",
    )
