"""Which files of a repository are taken, and what is taken out of them: data only, no code."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from bridge.formats.foreign import code_of_ours, our_code, without_code
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.files import write_json

# What `pull` takes, and `push` sends: what is read here, data and prose, which nothing executes.
_DATA = (
    *("*.safetensors", "*.gguf", "*.md", "*.txt", "LICENSE", "manifest.json", "*.index.json"),
    *("config.json", "generation_config.json", "preprocessor_config.json", "characters.json"),
    *("memory.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("added_tokens.json", "understanding_good_stuff.json"),
)
# Orbax's files, some of which have no endings.
_ORBAX = re.compile(
    r"(.*/)?(_METADATA|_CHECKPOINT_METADATA|_sharding|[\w.-]+\.ocdbt|d/[0-9a-f]+"
    r"|array_metadatas/process_\d+)"
)
# The weights of published checkpoints in the formats of their own code. They are read as data
# (a pickle is never executed) and taken only where there is no safetensors file.
_WEIGHTS = (
    *("good_stuff.pkl", "make_stuff_better.pkl", "step_*.zip", "ckpt.pt", "checkpoint-*.pt"),
    *("stage1_*.pt", "model_epoch_*.pt", "pytorch_model.bin", "pytorch_model-*.bin"),
    *("dinov2_*.pth", "meta.pkl"),
)
_LONGEST = 200  # bytes of a name: file systems take 255, and some are added while it is written
# Pulled files that may name code; such keys are left out.
_MAY_NAME = {
    *("config.json", "generation_config.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
}


def wanted(names: list[str]) -> list[str]:
    """Those files of a repository that `pull` takes, sorted.

    Names that would lead out of the folder, are hidden, or cannot be printed or written, are never
    among them.
    """
    inside = [name for name in sorted(names) if all(map(_is_usual, re.split(r"[/\\]", name)))]
    kinds: tuple[str, ...] = _DATA
    if not any(name.endswith(".safetensors") for name in inside):
        kinds += _WEIGHTS
    ours = our_code()
    return [name for name in inside if name in ours or _fits(name, kinds)]


def _is_usual(part: str) -> bool:
    """Whether a part of a path is an ordinary name of a file or folder."""
    short = len(part.encode("utf-8", "replace")) <= _LONGEST
    return bool(part) and not part.startswith(".") and part.isprintable() and short


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    last = name.rpartition("/")[2]
    return any(fnmatchcase(last, p) for p in patterns) or bool(_ORBAX.fullmatch(name))


def remove_foreign_code(folder: Path, files: list[str]) -> list[str]:
    """Removes code that is not ours to the byte; the files that stay."""
    foreign = (our_code().keys() & set(files)) - code_of_ours(folder)
    for file in foreign:
        (folder / file).unlink()
    return [file for file in files if file not in foreign]


def leave_out_code(folder: Path, files: list[str]) -> list[str]:
    """Takes the keys that name code which is not ours out of configs; what was taken out.

    The folder's manifest has other digests for these files then.

    Raises:
        Problem: (corrupt) a config is no JSON.
    """
    ours, left_out = code_of_ours(folder), []
    for file in files:
        if file.rpartition("/")[2] in _MAY_NAME:
            kept, keys = without_code(parse_json(folder / file), ours)
            if keys:
                write_json(folder / file, kept)
                left_out += [f"{key} in {file}" for key in keys]
    return left_out


def named_code(folder: Path, files: list[str]) -> list[str]:
    """The keys in configs that name code which is not ours, as "KEY in FILE".

    Raises:
        Problem: (corrupt) a config is no JSON.
    """
    ours = code_of_ours(folder)
    configs = [file for file in files if file.rpartition("/")[2] in _MAY_NAME]
    keys = {file: without_code(parse_json(folder / file), ours)[1] for file in configs}
    return [f"{key} in {file}" for file in configs for key in keys[file]]


def refuse_damage(lines: list[str], where: str, fix: str) -> None:
    """Refuses files with wrong digests, a line for each.

    Raises:
        Problem: (verification failed) there are some.
    """
    if lines:
        raise Problem(
            "the files are not what their manifest promises",
            where=where,
            why=few(lines, "\n"),
            fix=fix,
            exit_code=UNVERIFIED,
        )


def few(lines: Iterable[str], between: str = ", ") -> str:
    """The first eight of these lines, and how many more there are."""
    lines = sorted(lines)
    more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
    return between.join([*lines[:8], *more]) or "nothing"
