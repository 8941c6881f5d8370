"""Tokenisers as transformers saves them, read from all of their files.

That is `tokenizer.json`, or `vocab.json` with `merges.txt` (the byte-level BPE of slow tokenizers),
and beside them `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
`chat_template.jinja`. Classes that they name are not looked up, and no code is run.

Source: transformers 5, `tokenization_utils_base.py` and `tokenization_utils_tokenizers.py` (which
file takes precedence).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataProblem
from data_pipelines.tokenizer_settings import (
    CONFIG,
    Json,
    class_in,
    entry_of,
    object_in,
    read_settings,
    settings_of,
    special_tokens,
    text_in,
)

TOKENIZER = "tokenizer.json"
# Vocabulary and merges: transformers' file names, and those of OpenAI's release.
SLOW = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# Files of other tokenisers, which are not supported.
FOREIGN = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "spm.model", "vocab.txt", "vocab.json", "encoder.json", "tekken.json", "tokenizer.tiktoken",
    "tokenizer.vocab",
)  # fmt: skip

# Classes whose vocab.json and merges.txt are a byte-level BPE like GPT-2's.
_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
_ANY = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
_END = "<|endoftext|>"
# Classes that transformers 5 builds from the vocabulary and merges in tokenizer.json, ignoring its
# other parts → their normaliser and pre-tokeniser.
_NFC: dict[str, Any] = {"type": "NFC"}
_CLIP = {"type": "Sequence", "normalizers": [_NFC, {"type": "Replace", "pattern": {"Regex": "\\s+"},
         "content": " "}, {"type": "Lowercase"}]}  # fmt: skip
_CUTS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("GPT2", "Roberta", "Bart", "Whisper", "CodeGen", "LED"), (None, "ByteLevel")),
    "GPTNeoX": (_NFC, "ByteLevel"),
    "CLIP": (_CLIP, "Sequence"),
    "Llama": (None, "Metaspace"),
}


class UnknownTokenizer(DataProblem):
    """There is a tokeniser of an unsupported kind."""


def files_in(folder: Path) -> tuple[str, ...]:
    """The names of the files that hold the vocabulary; empty if there is none of a known kind."""
    for names in ((TOKENIZER,), *SLOW):
        if all((folder / name).is_file() for name in names):
            return names
    return ()


def refuse_foreign(folder: Path) -> None:
    """Raises UnknownTokenizer if a folder has a tokeniser of an unsupported kind."""
    present = [name for name in FOREIGN if (folder / name).is_file()]
    if present:
        raise unknown(folder, f"it is {', '.join(present)}")
    if named := object_in(folder / CONFIG).get("tokenizer_class"):
        raise unknown(folder, f"{CONFIG} says it is a {str(named)[:80]}")


def unknown(
    where: Path | str, why: str, what: str = "the tokeniser is of an unsupported kind"
) -> UnknownTokenizer:
    """The error for a tokeniser of an unsupported kind."""
    return UnknownTokenizer(
        what,
        where=str(where),
        why=why,
        fix="give the model's tokenizer.json, as transformers' save_pretrained writes it",
    )


def read_files(folder: Path, rows: int | None = None) -> tuple[Json, Json]:
    """The tokeniser of a folder as tokenizer.json, and its settings, as tokenizer_config.json.

    Args:
        folder: one in which `files_in` finds files.
        rows: of the embedding, if known. A special token that has a role but no id gets the next
            one, as in transformers, if the model has a row for it.

    Raises:
        UnknownTokenizer: it is of an unsupported kind.
        DataProblem: (corrupt) a file is damaged, or two contradict each other.
    """
    names, settings = files_in(folder), read_settings(folder)
    if names == (TOKENIZER,):
        data = object_in(folder / TOKENIZER)
        if not isinstance(data.get("model"), dict):
            why = "it has no key model"
            raise DataProblem("this is not a tokeniser", where=str(folder / TOKENIZER), why=why)
    else:
        kind = settings.get("tokenizer_class")
        if kind not in (*_GPT2, *_ANY) or "auto_map" in settings:
            custom = " with custom code" if "auto_map" in settings else ""
            raise unknown(folder / names[0], f"{CONFIG} says it is a {str(kind)[:80]}{custom}")
        data = _merged(folder, names)
    if names != (TOKENIZER,) or settings.get("tokenizer_class") in _GPT2:
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END) | settings
        _prefix_space(data, settings)
    _add(data, settings, _added(folder, settings), folder, rows)
    if names != (TOKENIZER,) and settings.get("add_bos_token") is True:
        data["post_processor"] = _begins_with(settings, data)
    return data, settings_of(settings)


def transformers_differs(folder: Path, content: Callable[[], Json]) -> list[str]:
    """A note if transformers 5 builds another tokeniser from a folder, else nothing.

    Some of its classes take only vocabulary and merges from tokenizer.json and ignore its
    normaliser and pre-tokeniser, which earlier versions followed, as we do.

    Args:
        folder: of the tokeniser.
        content: returns its tokenizer.json.
    """
    if not (folder / TOKENIZER).is_file():
        return []
    settings = object_in(folder / CONFIG)
    named = class_in(folder, settings)
    kind = named.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(named, str) else ""
    if kind not in _CUTS:
        return []
    data, (normalizer, cuts) = content(), _CUTS[kind]
    before, model = data.get("pre_tokenizer"), data.get("model")
    found = before if isinstance(before, dict) else {}
    same = found.get("type") == cuts and found.get("use_regex", True) is True
    if cuts == "ByteLevel":
        space = settings.get("add_prefix_space") is True
        same = same and space == (found.get("add_prefix_space") is True)
    same = same and not (isinstance(model, dict) and model.get("ignore_merges"))
    if same and (data.get("normalizer") or None) == normalizer:
        return []
    return [
        f"transformers 5 builds a {str(named)[:80]} from the vocabulary and the merges alone, and "
        f"may split some texts differently than {TOKENIZER}, which is followed here"
    ]


def _merged(folder: Path, names: tuple[str, ...]) -> Json:
    """tokenizer.json from a file of tokens and a file of merges."""
    vocab = object_in(folder / names[0])
    lines = (line.rstrip("\r") for line in text_in(folder / names[1]).split("\n"))
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if bad := next((pair for pair in merges if len(pair) != 2), None):
        why = f"{' '.join(bad)[:80]!r} is not a pair of tokens"
        raise DataProblem("the merges cannot be read", where=str(folder / names[1]), why=why)
    return byte_level(vocab, merges)


def byte_level(vocab: Json, merges: list[list[str]]) -> Json:
    """tokenizer.json of a byte-level BPE: token → id, and merges in order."""
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


def _prefix_space(data: Json, settings: Json) -> None:
    """Applies the settings' `add_prefix_space`: GPT-2's class prefers it to tokenizer.json."""
    before = data.get("pre_tokenizer")
    given = settings.get("add_prefix_space")
    if isinstance(given, bool) and isinstance(before, dict) and before.get("type") == "ByteLevel":
        before["add_prefix_space"] = given


def _begins_with(settings: Json, data: Json) -> Json | None:
    """The post-processor that puts the beginning-of-text token before a text."""
    entry = entry_of(settings.get("bos_token"))
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


def _added(folder: Path, settings: Json) -> list[Json]:
    """Added tokens with their ids, from the files that accompany the vocabulary."""
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        pairs = list(decoder.items()) if isinstance(decoder, dict) else [("", decoder)]
    else:
        special = {entry["content"] for _, entry in special_tokens(settings)}
        pairs = [
            (i, {"content": name, "special": name in special, "normalized": name not in special})
            for name, i in object_in(folder / "added_tokens.json").items()
        ]
    found = []
    for number, value in pairs:
        entry = entry_of(value, special=False)
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        if entry is None or type(number) is not int:
            why = f"one of them is {str(value)[:80]} with the id {str(number)[:80]}"
            raise DataProblem("the added tokens cannot be read", where=str(folder), why=why)
        found.append({"id": number, **entry})
    return found


def _add(data: Json, settings: Json, added: list[Json], folder: Path, rows: int | None) -> None:
    """Adds added and special tokens to the values of a tokenizer.json."""
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
    for _, entry in special_tokens(settings):
        name = entry["content"]
        if name in tokens:
            tokens[name] = tokens[name] | {"special": True}
        elif name in known:
            tokens[name] = {"id": known[name], **entry}
        elif rows is not None and size + 1 < rows:
            size += 1
            tokens[name] = {"id": size, **entry}
    data["added_tokens"] = sorted(tokens.values(), key=lambda token: token["id"])
