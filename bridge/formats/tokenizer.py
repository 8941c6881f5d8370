"""The tokeniser that goes with a model: found beside it, checked, written for transformers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.formats.nanogpt_meta import FILE as META
from bridge.formats.nanogpt_meta import places, read_meta
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.tokenizer_settings import CONFIG
from data_pipelines.tokenizers import (
    CharTokenizer,
    SubwordTokenizer,
    Tokenizer,
    has_tokenizer,
    load_tokenizer,
)
from data_pipelines.transformers_files import UnknownTokenizer, refuse_foreign
from jaxmodels.architecture import ConfigView
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.sizes import vocab_used

NO_TOKENIZER = "no_tokenizer"
"""Key of an origin: why the tokeniser that lay beside the source was not read."""


def read_tokenizer(path: Path, rows: int | None = None) -> Tokenizer:
    """The tokeniser in a file, or the one in a folder; nanoGPT's meta.pkl too.

    `rows` is the number of rows of the model's embedding, where it is known.

    Raises:
        Problem: (corrupt) there is none, or it cannot be used.
    """
    with _as_problem():
        if path.name == META:
            return read_meta(path)
        return load_tokenizer(path, rows)


def find_tokenizer(
    folder: Path, rows: int | None = None, dataset: Any = None
) -> tuple[Tokenizer | None, str]:
    """The tokeniser in a folder, or why the one that is there is not read.

    Args:
        folder: the one around a checkpoint.
        rows: of the model's embedding, where they are known.
        dataset: what a nanoGPT checkpoint calls its data.

    Raises:
        Problem: (corrupt) its file is damaged; (unsafe) it asks to run code.
    """
    with _as_problem():
        try:
            if has_tokenizer(folder):
                return load_tokenizer(folder, rows), ""
            if meta := next((p for p in places(folder, dataset) if p.is_file()), None):
                return read_meta(meta), ""
            refuse_foreign(folder)
        except UnknownTokenizer as problem:
            return None, problem.why
    return None, ""


def as_transformers(tokenizer: Tokenizer) -> Tokenizer:
    """The tokeniser with settings, so that it recognises special tokens in text.

    Without settings, like those of our own tokenisers, it takes them for plain text.
    """
    if isinstance(tokenizer, CharTokenizer) or tokenizer.settings:
        return tokenizer
    end = tokenizer.end_of_text
    name = None if end is None else tokenizer.decode([end])
    settings = {} if name is None else {"bos_token": name, "eos_token": name}
    return replace(tokenizer, settings=json.dumps(settings))


@contextmanager
def _as_problem() -> Iterator[None]:
    """Turns a DataProblem into a Problem."""
    try:
        yield
    except DataProblem as problem:
        parts = {name: getattr(problem, name) for name in ("where", "why", "fix", "exit_code")}
        raise Problem(problem.what, **parts) from problem


def tokenizer_by_convention(config: Any) -> Tokenizer | None:
    """GPT-2's, for a model with as many tokens as GPT-2; else None.

    Checkpoints of nanoGPT and BwETAF have no tokeniser, but are trained with GPT-2's.
    """
    return GPT2Tokenizer() if vocab_used(config) == GPT2Tokenizer.vocab_size else None


def padding(config: Any) -> range:
    """The rows of a model's embedding without a token."""
    return range(vocab_used(config), ConfigView(config).vocab)


def padding_notes(config: Any) -> list[str]:
    """A note on rows of the embedding without a token, if there are any."""
    if not (rows := padding(config)):
        return []
    return [
        f"rows {rows[0]} to {rows[-1]} of the embedding are padding: unchanged, but never drawn"
    ]


def check_fits(tokenizer: Tokenizer, rows: Any, where: Path) -> None:
    """Checks that an embedding has a row for each token.

    Raises:
        Problem: (mismatch) it has not.
    """
    if isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise _other_size(tokenizer, rows, where)


def check_size(tokenizer: Tokenizer, config: Any, where: Path) -> None:
    """Checks that a tokeniser has as many ids as the model uses.

    Raises:
        Problem: (mismatch) it has not.
    """
    if tokenizer.vocab_size != vocab_used(config):
        raise _other_size(tokenizer, vocab_used(config), where)


def _other_size(tokenizer: Tokenizer, count: int, where: Path) -> Problem:
    return Problem(
        f"the vocabulary has {tokenizer.vocab_size} entries, the model {count}",
        where=str(where),
        fix="give the vocabulary that the model was trained with",
        exit_code=MISMATCH,
    )


def given_tokenizer(source: Any, file: Path) -> Any:
    """The source with the tokeniser of `--vocab` instead of its own.

    Rows beyond its tokens are padding, unless the source has a number of tokens.

    Raises:
        Problem: (corrupt) it is not a tokeniser; (mismatch) its size is not the model's.
    """
    config = source.config
    tokenizer = read_tokenizer(file, ConfigView(config).vocab or None)
    if (
        "tokens" in source.assumed
        or vocab_used(config) == ConfigView(config).tokens == config.vocab
    ):
        check_fits(tokenizer, config.vocab, file)
        config = replace(config, tokens=tokenizer.vocab_size)
    check_size(tokenizer, config, file)
    origin = {key: value for key, value in source.origin.items() if key != NO_TOKENIZER}
    assumed = {name: value for name, value in source.assumed.items() if name != "tokens"}
    settled = {f"assumed: tokens = {vocab_used(source.config)}", *padding_notes(source.config)}
    notes = [note for note in source.notes if note not in settled] + padding_notes(config)
    return replace(
        source, tokenizer=tokenizer, config=config, origin=origin, assumed=assumed, notes=notes
    )


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, context: int, settings: Mapping[str, Any] | None = None
) -> None:
    """Writes the files besides the tokeniser's own that `AutoTokenizer` needs for the same ids.

    Args:
        folder: the model directory.
        tokenizer: its tokeniser.
        context: the model's.
        settings: keys that the architecture needs.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(tokenizer, CharTokenizer):
        _write(folder / GPT2Tokenizer.FILE, _words(tokenizer))
        config |= {"padding_side": "left", "split_special_tokens": True}
        config |= {"unk_token": "<UNK>"} if tokenizer.specials else {}
        config |= {"pad_token": "<PAD>"} if tokenizer.pad_id is not None else {}
    elif tokenizer.settings:
        config |= json.loads(tokenizer.settings)
    else:  # our own: special tokens are not recognised in text
        config["split_special_tokens"] = True
        if tokenizer.end_of_text is not None:
            end = tokenizer.decode([tokenizer.end_of_text])
            config |= {"padding_side": "left", "bos_token": end, "eos_token": end, "pad_token": end}
    config |= settings or {}
    if isinstance(tokenizer, SubwordTokenizer):
        # transformers 4 sets it in tokenizer.json as it stands here.
        before = tokenizer.to_json().get("pre_tokenizer") or {}
        config |= {key: before[key] for key in ("add_prefix_space",) if key in before}
    _write(folder / CONFIG, config)


def _words(tokenizer: CharTokenizer) -> dict[str, Any]:
    """A character vocabulary as tokenizer.json.

    Each character is one word of a WordLevel vocabulary; characters outside it become `<UNK>`,
    or without special tokens (wigip) the first character.
    """
    content = tokenizer.to_json()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "[\\s\\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": content["special_tokens"] | content["char_to_int"],
            "unk_token": "<UNK>" if tokenizer.specials else tokenizer.chars[0],
        },
    }


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
