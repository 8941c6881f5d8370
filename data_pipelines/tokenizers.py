"""Text to token ids and back: which tokenisers there are, and how one is found.

All of them have:

- `vocab_size`; `special_ids`: ids that no text gives and that are never drawn (<PAD>, <UNK>);
  `end_of_text`: the id between documents, which ends a sample, or None
- `encode(text)` -> int32 [n]: special tokens written in a text are text; `decode(ids)` -> str:
  bytes that are not UTF-8 become U+FFFD; `unknown(text)`: what the vocabulary cannot write
- `safe_cut(text)`: how many leading characters give the same ids whatever follows them
- `FILE`: name of its file in a folder; `save(path)` writes it; `to_json()`: what it holds
- `digest`: identity of the mapping, a string
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.characters import CHARACTERS, CharTokenizer
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.files import read_limited
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.subword import SubwordTokenizer
from data_pipelines.transformers_files import MAX_FILE, SLOW, files_in, read_files, refuse_foreign

Tokenizer = CharTokenizer | GPT2Tokenizer | SubwordTokenizer

CHARS = "chars"
"""The word for the characters of the text itself."""

BARE_CHARS = "bare-chars"
"""The word for the same without <PAD> and <UNK>: the vocabulary of seed 000's code."""

WORDS = "words"
"""The word for the words of captions."""


def open_tokenizer(name: str) -> Tokenizer:
    """The tokeniser that a recipe names: "gpt2", or the PATH of a file or folder.

    ("chars", "bare-chars" and "words", which a recipe may also hold, are built from the text.)

    Raises:
        DataProblem: (usage) neither; (corrupt) the file cannot be used.
    """
    if name == "gpt2":
        return GPT2Tokenizer()
    if name == WORDS:
        raise DataProblem(
            "a token for each word is for captions only",
            why="it loses how a text is laid out",
            fix="use chars, gpt2, or the path of a tokenizer.json",
            exit_code=USAGE,
        )
    if not name or not path_of(name).exists():
        raise DataProblem(
            f"unknown tokeniser: {name!r}",
            why="it is not chars, bare-chars, words or gpt2, and no such file or folder exists",
            fix="use chars, bare-chars, gpt2, words (of captions), or the path of a "
            "tokenizer.json or characters.json",
            exit_code=USAGE,
        )
    return load_tokenizer(name)


def load_tokenizer(path: Path | str, rows: int | None = None) -> Tokenizer:
    """Reads a tokeniser's file, or the one in a folder; recognised by content.

    Args:
        path: a character vocabulary (seed 002's JSON, or a JSON list of characters), or what
            transformers saves: tokenizer.json, or vocab.json and merges.txt, with what the files
            beside them say. GPT-2's own is read by tiktoken.
        rows: of the model's embedding, where they are known; see `transformers_files.read_files`.

    Raises:
        UnknownTokenizer: a tokeniser of another kind lies there.
        DataProblem: (corrupt) there is no such file, or it is neither.
    """
    path = path_of(str(path))
    folder = path if path.is_dir() else path.parent
    names = (CHARACTERS, GPT2Tokenizer.FILE)
    file = next((path / name for name in names if (path / name).is_file()), path)
    slow = path.is_dir() or path.name in sum(SLOW, ())
    if slow and file == path and files_in(folder):
        return _of_transformers(folder, rows)
    if file.is_dir():
        refuse_foreign(file)
    try:
        data = json.loads(read_limited(file, MAX_FILE).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_tokenizer(file, f"{type(error).__name__}: {str(error)[:200]}") from None
    if file.name == GPT2Tokenizer.FILE and isinstance(data, dict) and "model" in data:
        return _of_transformers(folder, rows)
    return tokenizer_from_json(data, str(file))


def _of_transformers(folder: Path, rows: int | None) -> Tokenizer:
    data, settings = read_files(folder, rows)
    file = str(folder / files_in(folder)[0])
    return tokenizer_from_json(data, file, json.dumps(settings) if settings else "")


def tokenizer_from_json(data: Any, where: str = "", settings: str = "") -> Tokenizer:
    """As `load_tokenizer`, from the parsed file and its settings; `where` names it in errors."""
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        from data_pipelines.gpt2.huggingface import is_gpt2

        made = SubwordTokenizer.from_json(data, where, settings)  # refuses what has another form
        return GPT2Tokenizer(settings) if is_gpt2(data) else made
    if isinstance(data, list) or (isinstance(data, dict) and "chars" in data):
        return CharTokenizer.from_json(data, where)
    why = "it has neither the key model nor the key chars, and is not a list of characters"
    raise _no_tokenizer(Path(where), why)


def unknown_name(tokenizer: Tokenizer) -> str:
    """What a reader sees in place of what the vocabulary cannot write."""
    if isinstance(tokenizer, CharTokenizer) and not tokenizer.specials:
        return repr(tokenizer.chars[0])
    return "<UNK>"


def count_unknown(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> int:
    """How many of the ids of a text stand for what the vocabulary cannot write."""
    if tokenizer.unk_id is None:
        return 0
    meant = 0
    if isinstance(tokenizer, CharTokenizer) and not tokenizer.specials:
        meant = text.count(tokenizer.chars[0])
    return int((ids == tokenizer.unk_id).sum()) - meant


def decode_stream(
    tokenizer: Tokenizer, pieces: Iterable[np.ndarray | list[int]], after: Sequence[int] = ()
) -> Iterator[str]:
    """The text of ids that come in pieces; a character that a piece cuts waits for its rest.

    Joined, it is the text of all ids together, where `after` are those of the text before: of a
    token for each word, whether a space is due is told by what it follows.
    """
    ids = list(after)
    said = text = tokenizer.decode(ids)
    for piece in pieces:
        ids.extend(np.asarray(piece).reshape(-1).tolist())
        text = tokenizer.decode(ids)
        whole = text.rstrip("\ufffd")
        if len(whole) > len(said):
            yield whole[len(said) :]
            said = whole
    if len(text) > len(said):
        yield text[len(said) :]


def _no_tokenizer(file: Path, why: str) -> DataProblem:
    return DataProblem(
        "this is not a tokeniser",
        where=str(file),
        why=why,
        fix="give a characters.json or a tokenizer.json, or a folder that has one",
    )
