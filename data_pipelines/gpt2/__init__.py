"""GPT-2's byte-level BPE by tiktoken.

The ranks come with the package (835 kB, their sha256 is checked), so that nothing is downloaded.
The tokenizer.json for other tools is derived from them; one that maps as GPT-2 does is recognised
and read by tiktoken too.

Sources: openai/gpt-2 (the pattern and the vocabulary), and the package openai-whisper, whose
`gpt2.tiktoken` (MIT, LICENSE) holds the same vocabulary as ranks.
"""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from data_pipelines.gpt2.vocabulary import END_OF_TEXT, RANKS_SHA256, VOCAB, ranks
from data_pipelines.ids import checked_ids, without_surrogates
from data_pipelines.tokenizer_settings import CONFIG
from jaxmodels.files import write_text

# Contractions; letters, digits or other signs, each with one space before them; white space.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# No token spans the border between another character and the white space after it.
_BORDER = re.compile(r"(?<=\S)[ \n]")


@dataclass(frozen=True)
class GPT2Tokenizer:
    """50,257 ids: 256 bytes, 50,000 merges, and end of text."""

    settings: str = field(default="", compare=False)
    """Content of the tokenizer_config.json that came with it; empty if none did."""

    FILE: ClassVar[str] = "tokenizer.json"
    """Name of its file in a folder: Hugging Face's format."""
    name: ClassVar[str] = "gpt2"
    """Its name in recipes."""
    vocab_size: ClassVar[int] = VOCAB
    """Number of ids."""
    special_ids: ClassVar[tuple[int, ...]] = ()
    """Neither padding nor an unknown token; `end_of_text` may be drawn and ends a sample."""
    end_of_text: ClassVar[int] = VOCAB - 1
    """Id between documents."""
    unk_id: ClassVar[None] = None
    """Bytes encode every text."""
    digest: ClassVar[str] = f"gpt2:{RANKS_SHA256}"
    """Identity of the mapping."""

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """Ids of a text; "<|endoftext|>" written in it is text like any other.

        A lone surrogate (a command line whose bytes were not UTF-8) becomes U+FFFD.
        """
        ids = _encoding().encode_to_numpy(without_surrogates(text), disallowed_special=())
        return ids.astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids (any sequence or array); bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataProblem: (mismatch) an id is not in the vocabulary.
        """
        return _encoding().decode(checked_ids(ids, VOCAB).tolist())

    def unknown(self, text: str) -> list[str]:
        """Nothing: bytes encode every text."""
        return []

    def safe_cut(self, text: str) -> int:
        """Number of leading characters whose ids do not depend on what follows."""
        for start in (max(0, len(text) - 1000), 0):  # the last border is nearly always close
            borders = [found.start() for found in _BORDER.finditer(text, start)]
            if borders:
                return borders[-1]
        return 0

    def to_json(self) -> dict[str, Any]:
        """Hugging Face's tokenizer.json; see `data_pipelines.gpt2.huggingface`."""
        from data_pipelines.gpt2.huggingface import tokenizer_json

        return tokenizer_json()

    def save(self, path: Path | str) -> None:
        """Writes tokenizer.json to `path` or, with its settings, into the folder `path`.

        Each file is written atomically.
        """
        path = Path(path)
        if path.is_dir() and self.settings:
            write_text(path / CONFIG, self.settings + "\n")
        text = json.dumps(self.to_json(), ensure_ascii=False) + "\n"
        write_text(path / self.FILE if path.is_dir() else path, text)


_thread = threading.local()


def _encoding() -> Any:
    """tiktoken's object of this thread: a third faster than one that threads share.

    Its regular expressions belong to the thread that first uses them; others take turns at copies.
    An object is made in 16 ms and takes 10 MB.
    """
    if not hasattr(_thread, "encoding"):
        import tiktoken

        _thread.encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=_PATTERN,
            mergeable_ranks=ranks(),
            special_tokens={END_OF_TEXT: GPT2Tokenizer.end_of_text},
            explicit_n_vocab=VOCAB,
        )
    return _thread.encoding
