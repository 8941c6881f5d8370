"""Any subword tokeniser that Hugging Face's `tokenizers` can read."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from data_pipelines.errors import MISMATCH, DataProblem
from data_pipelines.ids import checked_ids, without_surrogates
from data_pipelines.tokenizer_safety import check_bounded
from data_pipelines.tokenizer_settings import CONFIG, special_tokens
from data_pipelines.transformers_files import unknown
from jaxmodels.files import write_text

# Names of the token between documents; the first that is a special token of the file is taken.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
_MAX_VOCAB = 2**24  # the largest vocabularies have some 300,000


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer.json, kept as text, so that it can be saved and sent to other processes."""

    content: str
    """The file, without truncation and padding."""
    settings: str = field(default="", compare=False)
    """Content of the tokenizer_config.json that came with it; empty if none did."""

    FILE: ClassVar[str] = "tokenizer.json"
    """Name of its file in a folder."""

    @classmethod
    def from_json(
        cls, data: dict[str, Any], where: str = "", settings: str = ""
    ) -> "SubwordTokenizer":
        """Takes the parsed file and its settings; `where` names it in errors.

        Raises:
            UnknownTokenizer: `tokenizers` cannot use it, or would give its tokens other ids.
            DataProblem: (unsafe) it may take forever, or all memory.
        """
        check_bounded(data, where)
        data, what = (
            data | {"truncation": None, "padding": None},
            "this tokenizer.json cannot be read",
        )
        try:
            made = cls(json.dumps(data, ensure_ascii=False), settings)
            if made._renumbered(data):
                data = data | {"model": _with_added(data)}
                made = cls(json.dumps(data, ensure_ascii=False), settings)
            wrong = made._renumbered(data)
        except BaseException as error:
            raise unknown(where, _message(error), what) from None
        if wrong:
            raise unknown(where, f"the id of {wrong[0][:80]!r} cannot be kept", what)
        if made.vocab_size > _MAX_VOCAB:
            raise unknown(where, f"its largest id is {made.vocab_size - 1:,}", what)
        return made

    @property
    def vocab_size(self) -> int:
        """Largest id + 1: rows that an embedding needs."""
        return self._size

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that no text encodes to and that are never drawn: special tokens and unused ids.

        Not `end_of_text`, which may be drawn, nor the settings' additional special tokens, which
        the model was trained to write.
        """
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        further = {entry["content"] for role, entry in self._named if not role}
        found = {i for name, i in self._special.items() if name not in further}
        if self.unk_id is not None:
            found.add(self.unk_id)
        found |= set(range(self.vocab_size)).difference(ids.values())
        return tuple(sorted(found - {self.end_of_text}))

    @cached_property
    def end_of_text(self) -> int | None:
        """Id between documents: the settings' `eos_token`, or a special token of a common name."""
        stated = [entry["content"] for role, entry in self._named if role == "eos_token"]
        return next((self._special[n] for n in (*stated, *_ENDS) if n in self._special), None)

    @cached_property
    def digest(self) -> str:
        """Identity of the mapping: sha256 of the file's values, whatever their layout."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return "tokenizer.json:" + hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """Ids of a text; special tokens written in it are text, and none are added.

        Raises:
            DataProblem: (mismatch) it cannot encode the text.
        """
        return np.asarray(self._encoded(without_surrogates(text)).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids (any sequence or array), special tokens by name.

        Raises:
            DataProblem: (mismatch) an id is not in the vocabulary.
        """
        array = checked_ids(ids, self.vocab_size)
        return self._tokenizer.decode(array.tolist(), skip_special_tokens=False)

    def unknown(self, text: str) -> list[str]:
        """The distinct parts of a text that are not in the vocabulary, in order."""
        text = without_surrogates(text)
        found = self._encoded(text)
        parts = zip(found.ids, found.offsets, strict=True)
        return list(dict.fromkeys(text[a:b] for i, (a, b) in parts if i == self.unk_id))

    def safe_cut(self, text: str) -> int:
        """0: a token may span any border, so ids are certain only at a document's end."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """The file's values."""
        return json.loads(self.content)

    def save(self, path: Path | str) -> None:
        """Writes tokenizer.json to `path` or, with its settings, into the folder `path`.

        Each file is written atomically.
        """
        path = Path(path)
        if path.is_dir() and self.settings:
            write_text(path / CONFIG, self.settings + "\n")
        write_text(path / self.FILE if path.is_dir() else path, self.content + "\n")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return SubwordTokenizer, (self.content, self.settings)  # another process parses it again

    def _encoded(self, text: str) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as error:
            raise DataProblem(
                "the tokeniser cannot encode this text",
                where=repr(text[:80]),
                why=_message(error),
                fix="give a text that its vocabulary covers, or the model's own tokeniser",
                exit_code=MISMATCH,
            ) from None

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
    def _named(self) -> list[tuple[str, dict[str, Any]]]:
        return list(special_tokens(json.loads(self.settings or "{}")))

    def _renumbered(self, data: dict[str, Any]) -> list[str]:
        """Added tokens that get other ids from `tokenizers` than in the file."""
        given = self._tokenizer.token_to_id
        added = data.get("added_tokens") or []
        return [t["content"] for t in added if given(t["content"]) != t["id"]]

    @cached_property
    def unk_id(self) -> int | None:
        """Id of text that is not in the vocabulary; None if there is none."""
        model = self.to_json()["model"]
        if model.get("unk_token") is not None:
            return self._tokenizer.token_to_id(model["unk_token"])
        return model.get("unk_id")


def _message(error: BaseException) -> str:
    """The message of an error in `tokenizers`: an Exception, or a Rust panic, which is not one.
    Others are raised again."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return str(error)[:300]
    raise error


def _with_added(data: dict[str, Any]) -> dict[str, Any]:
    """The file's model with the added tokens in its vocabulary.

    `tokenizers` numbers added tokens consecutively, whatever their ids in the file; tokens of the
    vocabulary keep theirs. No text is encoded to them there if they are longer than a letter.
    """
    model, taken = data["model"], set(data["model"]["vocab"].values())
    new = [token for token in data["added_tokens"] if token["content"] not in model["vocab"]]
    for token in new:
        if token["id"] in taken or len(token["content"]) < 2 or model.get("ignore_merges"):
            raise ValueError(f"the id {token['id']} of {token['content'][:80]!r} cannot be kept")
        taken.add(token["id"])
    return model | {"vocab": model["vocab"] | {token["content"]: token["id"] for token in new}}
