"""Tokenisers as transformers saves them, read from all files that say something of them.

That is `tokenizer.json`, or `vocab.json` with `merges.txt` (the byte-level BPE of slow tokenizers),
and beside them `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
`chat_template.jinja`. No class that they name is looked up, and no code is taken over.

Source: transformers 5, `tokenization_utils_base.py` and `tokenization_utils_tokenizers.py` (which
file counts where two say something of a token).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from jaxmodels.reading import read_limited

MAX_FILE = 48_000_000  # bytes; the largest published have 34 million
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
# Vocabulary and merges: transformers' names, and those of OpenAI's release.
SLOW = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# Files of other tokenisers, which are not read here.
FOREIGN = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "spm.model", "vocab.txt", "vocab.json", "encoder.json", "tekken.json", "tokenizer.tiktoken",
    "tokenizer.vocab",
)  # fmt: skip

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
# The rest of tokenizer_config.json that is taken over, each with the types that it may have.
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
# Classes whose vocab.json and merges.txt are GPT-2's kind.
_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
_ANY = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
_END = "<|endoftext|>"
# Classes that transformers 5 makes of the vocabulary and merges in tokenizer.json, and not of the
# rest of it → how they normalise a text and cut it before bytes are merged. "" is a ByteLevel.
_NFC: dict[str, Any] = {"type": "NFC"}
_CLIP = {"type": "Sequence", "normalizers": [_NFC, {"type": "Replace", "pattern": {"Regex": "\\s+"},
         "content": " "}, {"type": "Lowercase"}]}  # fmt: skip
_CUTS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("GPT2", "Roberta", "Bart", "Whisper", "CodeGen", "LED"), (None, "ByteLevel")),
    "GPTNeoX": (_NFC, "ByteLevel"),
    "CLIP": (_CLIP, "Sequence"),
    "Llama": (None, "Metaspace"),
}

Json = dict[str, Any]


class UnknownTokenizer(DataProblem):
    """A tokeniser lies there, of a kind that is not read here."""


def files_in(folder: Path) -> tuple[str, ...]:
    """The names of the files that hold the vocabulary; none where no known kind lies there."""
    for names in ((TOKENIZER,), *SLOW):
        if all((folder / name).is_file() for name in names):
            return names
    return ()


def refuse_foreign(folder: Path) -> None:
    """Raises UnknownTokenizer where a tokeniser of another kind lies in a folder."""
    there = [name for name in FOREIGN if (folder / name).is_file()]
    if there:
        raise unknown(folder, f"it is {', '.join(there)}")
    if named := _object(folder / CONFIG).get("tokenizer_class"):
        raise unknown(folder, f"{CONFIG} says it is a {str(named)[:80]}")


def unknown(
    where: Path | str, why: str, what: str = "the tokeniser is of a kind that is not read here"
) -> UnknownTokenizer:
    """The problem with a tokeniser that is not read."""
    return UnknownTokenizer(
        what,
        where=str(where),
        why=why,
        fix="give the model's tokenizer.json, as transformers' save_pretrained writes it",
    )


def read_files(folder: Path, rows: int | None = None) -> tuple[Json, Json]:
    """tokenizer.json of the tokeniser in a folder, and its settings: tokenizer_config.json.

    Args:
        folder: one in which `files_in` finds something.
        rows: of the embedding, where they are known. A special token that has a role and no id
            gets the next one, as transformers gives it, if the model has a row for it.

    Raises:
        UnknownTokenizer: it is of a kind that is not read.
        DataProblem: (corrupt) a file is damaged, or two contradict each other.
    """
    names, said = files_in(folder), _said(folder)
    if names == (TOKENIZER,):
        data = _object(folder / TOKENIZER)
        if not isinstance(data.get("model"), dict):
            why = "it has no key model"
            raise DataProblem("this is not a tokeniser", where=str(folder / TOKENIZER), why=why)
    else:
        kind = said.get("tokenizer_class")
        if kind not in (*_GPT2, *_ANY) or "auto_map" in said:
            own = " with code of its own" if "auto_map" in said else ""
            raise unknown(folder / names[0], f"{CONFIG} says it is a {str(kind)[:80]}{own}")
        data = _merged(folder, names)
    if names != (TOKENIZER,) or said.get("tokenizer_class") in _GPT2:
        said = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END) | said
        _prefix_space(data, said)
    _add(data, said, _added(folder, said), folder, rows)
    if names != (TOKENIZER,) and said.get("add_bos_token") is True:
        data["post_processor"] = _begins_with(said, data)
    return data, settings_of(said)


def remade(folder: Path, content: Callable[[], Json]) -> list[str]:
    """What is to be said of a tokeniser in a folder of which transformers 5 makes another one.

    Some of its classes take vocabulary and merges from tokenizer.json and pass over how it
    normalises and cuts a text, which counted before and does here.

    Args:
        folder: the one that the tokeniser lies in.
        content: gives its tokenizer.json.
    """
    if not (folder / TOKENIZER).is_file():
        return []
    said = _object(folder / CONFIG)
    named = _class_in(folder, said)
    kind = named.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(named, str) else ""
    if kind not in _CUTS:
        return []
    data, (normalizer, cuts) = content(), _CUTS[kind]
    before, model = data.get("pre_tokenizer"), data.get("model")
    found = before if isinstance(before, dict) else {}
    same = found.get("type") == cuts and found.get("use_regex", True) is True
    if cuts == "ByteLevel":
        space = said.get("add_prefix_space") is True
        same = same and space == (found.get("add_prefix_space") is True)
    same = same and not (isinstance(model, dict) and model.get("ignore_merges"))
    if same and (data.get("normalizer") or None) == normalizer:
        return []
    return [
        f"transformers 5 makes a {str(named)[:80]} of the vocabulary and the merges alone, and may "
        f"cut some texts otherwise than {TOKENIZER} says; it is followed here"
    ]


def special_tokens(said: Json) -> Iterator[tuple[str, Json]]:
    """(role, token) of all special tokens that the settings name; further ones have no role."""
    for role in _ROLES:
        if entry := _entry(said.get(role)):
            yield role, entry
    for key in _MORE:
        more = said.get(key)
        values = list(more.values()) if isinstance(more, dict) else more
        for value in values if isinstance(values, list) else ():
            if entry := _entry(value):
                yield "", entry


def _said(folder: Path) -> Json:
    """tokenizer_config.json, completed by the files that counted before it said everything."""
    said = _object(folder / CONFIG)
    if "added_tokens_decoder" not in said:
        said |= _object(folder / "special_tokens_map.json")
    template = folder / "chat_template.jinja"
    if template.is_file():
        said["chat_template"] = _text(template)
    return said | {"tokenizer_class": _class_in(folder, said)}


def _class_in(folder: Path, said: Json) -> Any:
    """The class that AutoTokenizer takes: the settings', else the model's own."""
    if (named := said.get("tokenizer_class")) is not None:
        return named
    config = _object(folder / "config.json")
    named = config.get("tokenizer_class")
    return named or ("GPT2Tokenizer" if config.get("model_type") == "gpt2" else None)


def settings_of(said: Json) -> Json:
    """What is taken over: special tokens, and plain values of the keys that are known."""
    tokens = {role: entry for role, entry in special_tokens(said) if role}
    more = [entry for role, entry in special_tokens(said) if not role]
    kept = {key: said[key] for key, kind in _KEPT.items() if isinstance(said.get(key), kind)}
    return (
        kept
        | {role: entry["content"] for role, entry in tokens.items()}
        | ({_MORE[0]: [entry["content"] for entry in more]} if more else {})
    )


def _merged(folder: Path, names: tuple[str, ...]) -> Json:
    """tokenizer.json of a file of tokens and a file of merges."""
    vocab = _object(folder / names[0])
    lines = (line.rstrip("\r") for line in _text(folder / names[1]).split("\n"))
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if bad := next((pair for pair in merges if len(pair) != 2), None):
        why = f"{' '.join(bad)[:80]!r} is not a pair of tokens"
        raise DataProblem("the merges cannot be read", where=str(folder / names[1]), why=why)
    return byte_level(vocab, merges)


def byte_level(vocab: Json, merges: list[list[str]]) -> Json:
    """tokenizer.json of GPT-2's kind: token → id, and merges in their order."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": True},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": model | {"vocab": vocab, "merges": merges},
    }


def _prefix_space(data: Json, said: Json) -> None:
    """GPT-2's class follows its settings, whatever tokenizer.json says."""
    before = data.get("pre_tokenizer")
    given = said.get("add_prefix_space")
    if isinstance(given, bool) and isinstance(before, dict) and before.get("type") == "ByteLevel":
        before["add_prefix_space"] = given


def _begins_with(said: Json, data: Json) -> Json | None:
    """The step that puts the beginning-of-text token before a text that AutoTokenizer reads."""
    entry = _entry(said.get("bos_token"))
    ids = {token["content"]: token["id"] for token in data["added_tokens"]}
    if entry is None or entry["content"] not in ids:
        return None
    name = entry["content"]
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": i, "type_id": n}} for i, n in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": name, "type_id": 1}}, second],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]}},
    }


def _added(folder: Path, said: Json) -> list[Json]:
    """Added tokens with their ids, of the files beside the vocabulary."""
    if "added_tokens_decoder" in said:
        decoder = said["added_tokens_decoder"]
        pairs = list(decoder.items()) if isinstance(decoder, dict) else [("", decoder)]
    else:
        special = {entry["content"] for _, entry in special_tokens(said)}
        pairs = [
            (i, {"content": name, "special": name in special, "normalized": name not in special})
            for name, i in _object(folder / "added_tokens.json").items()
        ]
    found = []
    for number, value in pairs:
        entry = _entry(value, special=False)
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        if entry is None or type(number) is not int:
            why = f"one of them is {str(value)[:80]} with the id {str(number)[:80]}"
            raise DataProblem("the added tokens cannot be read", where=str(folder), why=why)
        found.append({"id": number, **entry})
    return found


def _add(data: Json, said: Json, added: list[Json], folder: Path, rows: int | None) -> None:
    """Puts added and special tokens into the values of a tokenizer.json."""
    vocab = data["model"].get("vocab")
    pairs = vocab.items() if isinstance(vocab, dict) else ()
    known = {token: i for token, i in pairs if type(i) is int}
    listed = data.get("added_tokens") or []
    tokens = {t["content"]: t for t in listed if isinstance(t, dict) and "content" in t}
    for entry in added:
        name = entry["content"]
        before = tokens.get(name, {}).get("id", known.get(name, entry["id"]))
        if before != entry["id"]:
            raise unknown(
                folder, f"its files give {name[:80]!r} the ids {before} and {entry['id']}"
            )
        tokens[name] = entry
    size = max([*known.values(), *(token.get("id", -1) for token in tokens.values())], default=-1)
    if isinstance(vocab, list):
        size = max(size, len(vocab) - 1)
        known = {pair[0]: i for i, pair in enumerate(vocab) if isinstance(pair, list) and pair}
    for _, entry in special_tokens(said):
        name = entry["content"]
        if name in tokens:
            tokens[name] = tokens[name] | {"special": True}
        elif name in known:
            tokens[name] = {"id": known[name], **entry}
        elif rows is not None and size + 1 < rows:
            size += 1
            tokens[name] = {"id": size, **entry}
    data["added_tokens"] = sorted(tokens.values(), key=lambda token: token["id"])


def _entry(value: Any, special: bool = True) -> Json | None:
    """A token with its flags, from its name or its fields; None where it is neither."""
    fields = {"content": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        return None
    if not fields["content"]:
        return None
    flags = {flag: fields.get(flag) is True for flag in _FLAGS}
    special = special or fields.get("special") is True
    return {"content": fields["content"], **flags, "special": special}


def _object(path: Path) -> Json:
    """The JSON object in a file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"{type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise _broken(path, f"it holds a {type(value).__name__}, not an object")
    return value


def _text(path: Path) -> str:
    try:
        return read_limited(path, MAX_FILE).decode("utf-8")
    except (OSError, ValueError) as error:
        raise _broken(path, f"{type(error).__name__}: {str(error)[:200]}") from None


def _broken(path: Path, why: str) -> DataProblem:
    fix = "fetch or save the tokeniser again"
    return DataProblem("this file of a tokeniser cannot be read", where=str(path), why=why, fix=fix)
