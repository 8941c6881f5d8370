"""The settings that accompany a tokeniser of transformers: special tokens and plain values.

They are in `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`, and older
folders name the class in the model's `config.json`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from jaxmodels.reading import read_limited

MAX_FILE = 48_000_000  # bytes; the largest published have 34 million
CONFIG = "tokenizer_config.json"

Json = dict[str, Any]

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MORE = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
# Further keys of tokenizer_config.json that are kept, with their types.
_KEPT: dict[str, Any] = {
    "model_max_length": int | float,
    "padding_side": str,
    "truncation_side": str,
    "clean_up_tokenization_spaces": bool,
    "split_special_tokens": bool,
    "add_prefix_space": bool,
    "errors": str,
    "chat_template": str | list | dict,
}


def special_tokens(settings: Json) -> Iterator[tuple[str, Json]]:
    """(role, token) of all special tokens in the settings; additional ones have no role."""
    for role in _ROLES:
        if entry := entry_of(settings.get(role)):
            yield role, entry
    for key in _MORE:
        more = settings.get(key)
        values = list(more.values()) if isinstance(more, dict) else more
        for value in values if isinstance(values, list) else ():
            if entry := entry_of(value):
                yield "", entry


def read_settings(folder: Path) -> Json:
    """tokenizer_config.json, completed from the files that older versions used."""
    settings = object_in(folder / CONFIG)
    if "added_tokens_decoder" not in settings:
        settings |= object_in(folder / "special_tokens_map.json")
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = text_in(template)
    return settings | {"tokenizer_class": class_in(folder, settings)}


def class_in(folder: Path, settings: Json) -> Any:
    """The class that AutoTokenizer takes: that of the settings, else of the model."""
    if (named := settings.get("tokenizer_class")) is not None:
        return named
    config = object_in(folder / "config.json")
    named = config.get("tokenizer_class")
    return named or ("GPT2Tokenizer" if config.get("model_type") == "gpt2" else None)


def settings_of(settings: Json) -> Json:
    """The settings that are kept: special tokens, and plain values of known keys."""
    tokens = {role: entry for role, entry in special_tokens(settings) if role}
    more = [entry for role, entry in special_tokens(settings) if not role]
    kept = {
        key: settings[key] for key, kind in _KEPT.items() if isinstance(settings.get(key), kind)
    }
    return (
        kept
        | {role: entry["content"] for role, entry in tokens.items()}
        | ({_MORE[0]: [entry["content"] for entry in more]} if more else {})
    )


def entry_of(value: Any, special: bool = True) -> Json | None:
    """A token with its flags, from its name or its fields; None if it is neither."""
    fields = {"content": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        return None
    if not fields["content"]:
        return None
    flags = {flag: fields.get(flag) is True for flag in _FLAGS}
    special = special or fields.get("special") is True
    return {"content": fields["content"], **flags, "special": special}


def object_in(path: Path) -> Json:
    """The JSON object in a file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(text_in(path))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"{type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise _broken(path, f"it holds a {type(value).__name__}, not an object")
    return value


def text_in(path: Path) -> str:
    """The text of a file; an error if it is too large or not UTF-8."""
    try:
        return read_limited(path, MAX_FILE).decode("utf-8")
    except (OSError, ValueError) as error:
        raise _broken(path, f"{type(error).__name__}: {str(error)[:200]}") from None


def _broken(path: Path, why: str) -> DataProblem:
    fix = "fetch or save the tokeniser again"
    return DataProblem("this file of a tokeniser cannot be read", where=str(path), why=why, fix=fix)
