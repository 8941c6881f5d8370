"""Files of others are taken over as data only, never what names code.

transformers imports the file that a `config.json` names (`auto_map`), and downloads code if the
name of an attention has a slash in it; nanoGPT unpickles the file that a dataset's name leads to.
So only known data is copied from a source's config into an output, and keys that name code are
removed from downloaded files.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.core.twins import twin_files
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.reading import digest, read_json

# Keys whose values are classes or modules that are imported, or repositories of code.
_CODE = re.compile(
    r"auto_map(ping)?|parent_library|custom_\w+|trust_remote_code|\w*kernel\w*"
    r"|_?\w*attn_implementation\w*|_?experts_implementation"
)
_SCRIPTS = (".py", ".pyc", ".pyd", ".so", ".dylib", ".dll", ".sh", ".exe", ".bat", ".jar", ".js")
_CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
# Files that describe a model: a path with such a name must be a regular file.
_BESIDE = (".json", ".txt", ".safetensors", ".gguf")

_WORD = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)
# transformers' keys whose values are words that it defines.
_TRANSFORMERS = {
    *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype"),
    *("activation_function", "activation", "hidden_act", "position_embedding_type"),
    *("summary_type", "summary_activation", "problem_type", "finetuning_task"),
    *("out_features", "stage_names", "interpolation", "gelu", "rope_type"),
}
_LABELS = ("id2label", "label2id")  # any text
# Formats whose config is never written again.
_READ_ONLY = {"wigip-zip", "bitgen"}
# Format → those of its keys that may hold words; transformers' by default.
_WORDS = {
    "nanogpt": {
        *("dataset", "init_from", "backend", "device", "dtype", "out_dir", "activation"),
        *("wandb_project", "wandb_run_name"),
    },
    "bwetaf": {"possible_opt_path"},
}


def data_only(format: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A source's config without anything that could name code, a path or a repository.

    Args:
        format: whose config it is, as in `RawCheckpoint`.
        config: the parsed config.

    Returns:
        Numbers, booleans and None under any key, strings under the keys where the format has
        them, and dicts and lists of these. The whole config, if the format is never written.
    """
    if format in _READ_ONLY:
        return dict(config)
    words = _WORDS.get(format, _TRANSFORMERS)
    return {key: value for key, value in config.items() if _is_data(key, value, words)}


def _is_data(key: str, value: Any, words: set[str]) -> bool:
    if isinstance(value, str):
        return not value or (key in words and _WORD.fullmatch(value) is not None)
    if key in _LABELS and isinstance(value, dict):
        return all(isinstance(label, str | int) for label in value.values())
    if isinstance(value, dict):
        return all(_is_data(str(inner), part, words) for inner, part in value.items())
    if isinstance(value, list | tuple):
        return all(_is_data(key, part, words) for part in value)
    return value is None or isinstance(value, bool | int | float)


def our_code() -> dict[str, str]:
    """Name → sha256 of the modelling files that model directories of this version carry."""
    return {file.name: digest(file) for file in twin_files()}


def code_of_ours(folder: Path) -> set[str]:
    """The modelling files in a folder that are byte for byte those of this version."""
    ours = our_code()
    present = [name for name in ours if (folder / name).is_file()]
    return {name for name in present if digest(folder / name) == ours[name]}


def without_code(value: Any, ours: set[str]) -> tuple[Any, list[str]]:
    """Parsed JSON without the keys that name code, at any depth, and these keys.

    Args:
        value: the parsed file; it is not changed.
        ours: modelling files beside it that may be named, see `code_of_ours`.
    """
    if isinstance(value, list):
        pairs = [without_code(part, ours) for part in value]
        return [part for part, _ in pairs], [key for _, keys in pairs for key in keys]
    if not isinstance(value, dict):
        return value, []
    kept, left_out = {}, []
    for key, part in value.items():
        if _CODE.fullmatch(key) and _names_code(part, ours):
            left_out.append(key)
        else:
            kept[key], inside = without_code(part, ours)
            left_out += inside
    return kept, left_out


def _names_code(value: Any, ours: set[str]) -> bool:
    """Whether a value under such a key names what is not ours; numbers and plain words do not."""
    if isinstance(value, str):
        return not (not value or value.isidentifier() or f"{value.partition('.')[0]}.py" in ours)
    if isinstance(value, dict):
        return any(_names_code(part, ours) for part in value.values())
    return isinstance(value, list) and any(_names_code(part, ours) for part in value)


def code_beside(folder: Path) -> list[str]:
    """A note on code beside a checkpoint, which is neither run nor copied."""
    ours = code_of_ours(folder)
    found = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(_SCRIPTS) and path.name not in ours
    ]
    for name in _CONFIGS:
        try:
            _, keys = without_code(read_json(folder / name), ours)
        except (OSError, ValueError):  # reported by whatever needs the file
            continue
        found += [f"{key} in {name}" for key in keys]
    return [f"code is neither run nor copied: {', '.join(found)}"] if found else []


def refuse_strange(path: Path) -> None:
    """Checks that a path is a file or a folder, and what should be files in the folder are.

    Raises:
        Problem: (corrupt) one is a folder, a pipe, a device, or a link that leads nowhere.
    """
    files = [path]
    if path.is_dir():
        files = [inside for inside in sorted(path.iterdir()) if inside.name.endswith(_BESIDE)]
    for file in files:
        if not file.is_file():
            kind = "a pipe, a socket or a device"
            if file.is_symlink():
                kind = "a link that leads to no file"
            elif file.is_dir():
                kind = "a folder"
            raise Problem(
                "a file was expected here",
                where=str(file),
                why=f"it is {kind}",
                fix="remove it, or fetch the file again",
                exit_code=CORRUPT,
            )
