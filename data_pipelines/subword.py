"""Any subword tokeniser that Hugging Face's `tokenizers` can read."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from data_pipelines.errors import DataProblem
from data_pipelines.files import write_text
from data_pipelines.ids import checked_ids, without_surrogates
from data_pipelines.tokenizer_safety import check_bounded

# How the token between documents is called; the first that the file has as a special token.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer.json; it is kept as text, so that it can be saved and sent to other processes."""

    content: str
    """The file, without what cuts or pads texts."""

    FILE: ClassVar[str] = "tokenizer.json"
    """Name of its file in a folder."""

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "") -> "SubwordTokenizer":
        """Takes the parsed file; `where` names it in errors.

        Raises:
            DataProblem: (corrupt) `tokenizers` cannot use it; (unsafe) it may take forever, or
                all memory.
        """
        check_bounded(data, where)
        made = cls(json.dumps(data | {"truncation": None, "padding": None}, ensure_ascii=False))
        try:
            _ = made._tokenizer
        except Exception as error:  # `tokenizers` raises Exception itself
            raise DataProblem(
                "this tokenizer.json cannot be read",
                where=where,
                why=str(error),
                fix="give the file that was saved with the tokeniser",
            ) from None
        return made

    @property
    def vocab_size(self) -> int:
        """Largest id + 1: rows that an embedding needs."""
        return self._size

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of special tokens, which no text gives; without `end_of_text`, which may be drawn."""
        found = {*self._special.values()}
        if self.unk_id is not None:
            found.add(self.unk_id)
        return tuple(sorted(found - {self.end_of_text}))

    @cached_property
    def end_of_text(self) -> int | None:
        """Id between documents; None when no special token has a name that says so."""
        return next((self._special[name] for name in _ENDS if name in self._special), None)

    @cached_property
    def digest(self) -> str:
        """Identity of the mapping: sha256 of the file's values, however they are laid out."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return "tokenizer.json:" + hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """Ids of a text; special tokens written in it are text, and none are added."""
        found = self._tokenizer.encode(without_surrogates(text), add_special_tokens=False)
        return np.asarray(found.ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids (any sequence or array), special tokens by name.

        Raises:
            DataProblem: (mismatch) an id is not in the vocabulary.
        """
        array = checked_ids(ids, self.vocab_size)
        return self._tokenizer.decode(array.tolist(), skip_special_tokens=False)

    def unknown(self, text: str) -> list[str]:
        """The distinct parts of the text that the vocabulary cannot write, first one first."""
        text = without_surrogates(text)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        parts = zip(found.ids, found.offsets, strict=True)
        return list(dict.fromkeys(text[a:b] for i, (a, b) in parts if i == self.unk_id))

    def safe_cut(self, text: str) -> int:
        """Nothing is sure before the end of the document: a token may reach over anything."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """The file's values."""
        return json.loads(self.content)

    def save(self, path: Path | str) -> None:
        """Writes tokenizer.json, as `path` or into the folder `path`; whole or not at all."""
        path = Path(path)
        write_text(path / self.FILE if path.is_dir() else path, self.content + "\n")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return SubwordTokenizer, (self.content,)  # another process reads the file itself

    @cached_property
    def _tokenizer(self) -> Any:
        import tokenizers

        made = tokenizers.Tokenizer.from_str(self.content)
        made.encode_special_tokens = True
        return made

    @cached_property
    def _size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def _special(self) -> dict[str, int]:
        tokens = self.to_json().get("added_tokens") or []
        return {token["content"]: token["id"] for token in tokens if token.get("special")}

    @cached_property
    def unk_id(self) -> int | None:
        """Id of what the vocabulary cannot write; None where there is none."""
        model = self.to_json()["model"]
        if model.get("unk_token") is not None:
            return self._tokenizer.token_to_id(model["unk_token"])
        return model.get("unk_id")
