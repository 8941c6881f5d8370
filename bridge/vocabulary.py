"""The tokeniser that goes with a model: found beside it, checked, written for transformers."""

import json
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.tokenizers import CharTokenizer, Tokenizer, load_tokenizer
from jaxmodels.errors import MISMATCH, Problem

FILES = (CharTokenizer.FILE, GPT2Tokenizer.FILE)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokeniser in a file, or the one in a folder.

    Raises:
        Problem: (corrupt) there is none, or it cannot be used.
    """
    try:
        return load_tokenizer(path)
    except DataProblem as problem:
        told = {name: getattr(problem, name) for name in ("where", "why", "fix", "exit_code")}
        raise Problem(problem.what, **told) from problem


def tokenizer_beside(folder: Path) -> Tokenizer | None:
    """The tokeniser that lies in a folder; None when there is none. Raises as `read_tokenizer`."""
    there = any((folder / name).is_file() for name in FILES)
    return read_tokenizer(folder) if there else None


def tokenizer_by_convention(config: Any) -> Tokenizer | None:
    """GPT-2's, for a model with as many tokens as GPT-2; else None.

    The checkpoints of nanoGPT and BwETAF carry no tokeniser: everybody knows which it is.
    """
    return GPT2Tokenizer() if used(config) == GPT2Tokenizer.vocab_size else None


def used(config: Any) -> int:
    """Token ids that a model uses: its vocabulary without the rows that only pad it; 0 where it
    reads no text."""
    count: int = getattr(config, "tokens", getattr(config, "vocab", 0))
    return count


def padding(config: Any) -> range:
    """Rows of a model's embedding that stand for no token."""
    return range(used(config), getattr(config, "vocab", 0))


def check_size(tokenizer: Tokenizer, config: Any, where: Path) -> None:
    """Checks that a tokeniser has as many ids as the model uses.

    Raises:
        Problem: (mismatch) it has not.
    """
    if tokenizer.vocab_size != used(config):
        raise Problem(
            f"the vocabulary has {tokenizer.vocab_size} entries, the model {used(config)}",
            where=str(where),
            fix="give the vocabulary that the model was trained with",
            exit_code=MISMATCH,
        )


def generation_config(tokenizer: Tokenizer | None, config: Any) -> dict[str, Any]:
    """What transformers' `generate` must know: ids that are never drawn, and what ends a text."""
    special = tokenizer.special_ids if tokenizer else ()
    values: dict[str, Any] = {"suppress_tokens": [*special, *padding(config)]}
    if isinstance(tokenizer, CharTokenizer) and tokenizer.pad_id is not None:
        values["pad_token_id"] = tokenizer.pad_id
    if tokenizer and (end := tokenizer.end_of_text) is not None:
        values |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    return {name: value for name, value in values.items() if value != []}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Writes what `AutoTokenizer` needs besides the tokeniser's own file to give the same ids."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        # A special token that is written in a text is text.
        "split_special_tokens": True,
    }
    if isinstance(tokenizer, CharTokenizer):
        _write(folder / GPT2Tokenizer.FILE, _words(tokenizer))
        config |= {"padding_side": "left"}
        config |= {"unk_token": "<UNK>"} if tokenizer.specials else {}
        config |= {"pad_token": "<PAD>"} if tokenizer.pad_id is not None else {}
    elif tokenizer.end_of_text is not None:
        end = tokenizer.decode([tokenizer.end_of_text])
        config |= {"padding_side": "left", "bos_token": end, "eos_token": end, "pad_token": end}
    _write(folder / "tokenizer_config.json", config)


def _words(tokenizer: CharTokenizer) -> dict[str, Any]:
    """A character vocabulary as tokenizer.json.

    Each character is one word of a WordLevel vocabulary; characters outside it become `<UNK>`,
    or without special tokens (seed 000) the first character.
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
