"""The vocabulary of a character model: the seed's JSON, and as a transformers tokeniser."""

import json
from pathlib import Path
from typing import Any

from bridge.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

CHARACTERS = "characters.json"

Vocabulary = dict[str, Any]


def read_vocabulary(path: Path) -> Vocabulary:
    """A `characters.json` as the seed's tokeniser saves it.

    Raises:
        Problem: (corrupt) not JSON, or no one-to-one map of characters to 0 … n − 1.
    """
    vocabulary = parse_json(path)
    try:
        ids = [*vocabulary["special_tokens"].values(), *vocabulary["char_to_int"].values()]
        sound = (
            all(type(i) is int for i in ids)
            and sorted(ids) == list(range(len(ids)))
            and all(len(character) == 1 for character in vocabulary["char_to_int"])
            and "<UNK>" in vocabulary["special_tokens"]
        )
    except (KeyError, AttributeError, TypeError) as error:
        sound, why = False, f"{type(error).__name__}: {error}"
    else:
        why = "special tokens (with <UNK>) and characters must have the ids 0 … n − 1, each once"
    if not sound:
        raise Problem(
            "the vocabulary cannot be used",
            where=str(path),
            why=why,
            fix="give the JSON that the tokeniser of the training run saved",
            exit_code=CORRUPT,
        )
    return vocabulary


def ids_of(vocabulary: Vocabulary) -> dict[str, int]:
    """Special token or character → id."""
    return {**vocabulary["special_tokens"], **vocabulary["char_to_int"]}


def check_size(vocabulary: Vocabulary, size: int, where: Path) -> None:
    """Checks that a vocabulary has as many entries as the model's embedding has rows.

    Raises:
        Problem: (mismatch) it has not.
    """
    if (count := len(ids_of(vocabulary))) != size:
        raise Problem(
            f"the vocabulary has {count} entries, the model {size}",
            where=str(where),
            fix="give the vocabulary that the model was trained with",
            exit_code=MISMATCH,
        )


def write_tokenizer(folder: Path, vocabulary: Vocabulary, context: int) -> None:
    """Writes the files from which `AutoTokenizer.from_pretrained` encodes and decodes the same ids.

    Each character is one word of a WordLevel vocabulary; characters outside it become `<UNK>`.
    """
    specials = vocabulary["special_tokens"]
    tokenizer: dict[str, Any] = {
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
        "model": {"type": "WordLevel", "vocab": ids_of(vocabulary), "unk_token": "<UNK>"},
    }
    _write(folder / "tokenizer.json", tokenizer)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            # "<UNK>" written in a text is five characters, not the special token.
            "split_special_tokens": True,
            "unk_token": "<UNK>",
            **({"pad_token": "<PAD>"} if "<PAD>" in specials else {}),
        },
    )


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
