"""The tokenisers, and how one is opened.

All of them have:

- `vocab_size`; `special_ids`: ids that no text encodes to and that are never drawn (<PAD>, <UNK>);
  `end_of_text`: the id between documents, which ends a sample, or None
- `encode(text)` -> int32 [n]: special tokens written in a text are text; `decode(ids)` -> str:
  invalid UTF-8 becomes U+FFFD; `unknown(text)`: the parts that are not in the vocabulary
- `safe_cut(text)`: number of leading characters whose ids do not depend on what follows
- `FILE`: name of its file in a folder; `save(path)` writes it; `to_json()`: its content
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
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.sentencepiece import looks_like_model, read_model, sentencepiece_in
from data_pipelines.subword import SubwordTokenizer
from data_pipelines.tokenizer_settings import MAX_FILE
from data_pipelines.transformers_files import SLOW, files_in, read_files, refuse_foreign
from jaxmodels.reading import read_limited

Tokenizer = CharTokenizer | GPT2Tokenizer | SubwordTokenizer

CHARS = "chars"
"""Name of the tokeniser of the text's characters."""

BARE_CHARS = "bare-chars"
"""The same without <PAD> and <UNK>: the vocabulary of seed 000."""

WORDS = "words"
"""Name of the tokeniser of the captions' words."""


def open_tokenizer(name: str) -> Tokenizer:
    """Opens the tokeniser that a recipe names: "gpt2", or the PATH of a file or folder.

    ("chars", "bare-chars", "words" and those of `vocabularies`, as "bpe:4096", which a recipe may
    also name, are made from the text.)

    Raises:
        DataProblem: (usage) it is neither; (corrupt) the file cannot be used.
    """
    if name == "gpt2":
        return GPT2Tokenizer()
    if name == WORDS:
        raise DataProblem(
            "the tokeniser words is for captions only",
            why="it loses the layout of a text",
            fix="use chars, gpt2, or the path of a tokenizer.json",
            exit_code=USAGE,
        )
    if not name or not path_of(name).exists():
        raise DataProblem(
            f"unknown tokeniser: {name!r}",
            why="it is not chars, bare-chars, words or gpt2, none that is made of the text such as "
            "bpe:4096, unigram:4096 or bytes, and no such file or folder exists",
            fix="use one of them (words is for captions), or the path of a tokenizer.json, "
            "characters.json or sentencepiece model",
            exit_code=USAGE,
        )
    return load_tokenizer(name)


def load_tokenizer(path: Path | str, rows: int | None = None) -> Tokenizer:
    """Reads a tokeniser's file, or the one in a folder, recognised by content.

    Args:
        path: a character vocabulary (seed 002's JSON, or a JSON list of characters), or
            transformers' files: tokenizer.json, or vocab.json and merges.txt, with the files that
            accompany them (GPT-2's is read by tiktoken); a sentencepiece model.
        rows: of the model's embedding, if known; see `transformers_files.read_files`.

    Raises:
        UnknownTokenizer: it is a tokeniser of another kind.
        DataProblem: (corrupt) there is no such file, or it is neither.
    """
    path = path_of(str(path))
    folder = path if path.is_dir() else path.parent
    names = (CHARACTERS, GPT2Tokenizer.FILE)
    file = next((path / name for name in names if (path / name).is_file()), path)
    if (model := _sentencepiece(path)) is not None:
        data, settings = read_model(model)
        return tokenizer_from_json(data, str(model), json.dumps(settings))
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


def has_tokenizer(folder: Path) -> bool:
    """Whether `load_tokenizer` finds a file of a known kind in a folder."""
    known = (folder / CHARACTERS).is_file() or files_in(folder)
    return bool(known) or sentencepiece_in(folder) is not None


def _sentencepiece(path: Path) -> Path | None:
    """The sentencepiece model that a path is, or that a folder has as its only tokeniser."""
    if path.is_dir():
        others = (path / CHARACTERS).is_file() or files_in(path)
        return None if others else sentencepiece_in(path)
    is_model = path.is_file() and (path.suffix in (".model", ".spm") or looks_like_model(path))
    return path if is_model else None


def _of_transformers(folder: Path, rows: int | None) -> Tokenizer:
    data, settings = read_files(folder, rows)
    file = str(folder / files_in(folder)[0])
    return tokenizer_from_json(data, file, json.dumps(settings) if settings else "")


def tokenizer_from_json(data: Any, where: str = "", settings: str = "") -> Tokenizer:
    """As `load_tokenizer`, from the parsed file and its settings; `where` names it in errors."""
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        from data_pipelines.gpt2.huggingface import is_gpt2

        made = SubwordTokenizer.from_json(data, where, settings)  # validates it
        return GPT2Tokenizer(settings) if is_gpt2(data) else made
    if isinstance(data, list) or (isinstance(data, dict) and "chars" in data):
        return CharTokenizer.from_json(data, where)
    why = "it has neither the key model nor the key chars, and is not a list of characters"
    raise _no_tokenizer(Path(where), why)


def unknown_name(tokenizer: Tokenizer) -> str:
    """What replaces text that is not in the vocabulary, as shown to users."""
    if isinstance(tokenizer, CharTokenizer) and not tokenizer.specials:
        return repr(tokenizer.chars[0])
    return "<UNK>"


def count_unknown(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> int:
    """Number of ids of a text that stand for what is not in the vocabulary."""
    if tokenizer.unk_id is None:
        return 0
    literal = 0
    if isinstance(tokenizer, CharTokenizer) and not tokenizer.specials:
        literal = text.count(tokenizer.chars[0])
    return int((ids == tokenizer.unk_id).sum()) - literal


def decode_stream(
    tokenizer: Tokenizer, pieces: Iterable[np.ndarray | list[int]], after: Sequence[int] = ()
) -> Iterator[str]:
    """Streams the text of ids that come in pieces; a split character waits for its rest.

    The concatenated pieces are the text of all ids. `after` are the ids before them, which decide
    whether a word-level tokeniser starts with a space.
    """
    ids = list(after)
    emitted = text = tokenizer.decode(ids)
    for piece in pieces:
        ids.extend(np.asarray(piece).reshape(-1).tolist())
        text = tokenizer.decode(ids)
        complete = text.rstrip("\ufffd")
        if len(complete) > len(emitted):
            yield complete[len(emitted) :]
            emitted = complete
    if len(text) > len(emitted):
        yield text[len(emitted) :]


def _no_tokenizer(file: Path, why: str) -> DataProblem:
    return DataProblem(
        "this is not a tokeniser",
        where=str(file),
        why=why,
        fix="give a characters.json, a tokenizer.json or a sentencepiece model, or a folder with "
        "one",
    )
