"""nanoGPT's `meta.pkl`: the vocabulary of characters, in the folder of a dataset's tokens.

It is a pickle, read as data. Source: karpathy/nanoGPT, `data/shakespeare_char/prepare.py` (what is
saved) and `sample.py` (which looks for it in `data/DATASET`, named by the checkpoint's `config`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge import sandbox
from bridge.legacy.pickle_writer import write_pickle
from data_pipelines.tokenizers import CharTokenizer
from data_pipelines.transformers_files import unknown

FILE = "meta.pkl"
_NAME = re.compile(r"\w[\w.-]{0,99}")  # of a folder, without separators
DATASET = "characters"
"""The dataset's name in a checkpoint that has none yet."""


def places(folder: Path, dataset: Any = None) -> Iterator[Path]:
    """Paths where the file of a checkpoint in a folder may be.

    nanoGPT keeps it with the data, in `data/DATASET`; its `out_dir` is beside `data`.
    """
    yield folder / FILE
    if isinstance(dataset, str) and _NAME.fullmatch(dataset):
        yield folder / "data" / dataset / FILE
        yield folder.absolute().parent / "data" / dataset / FILE


def read_meta(path: Path) -> CharTokenizer:
    """The characters in the file.

    Raises:
        UnknownTokenizer: its tokens are not characters.
        Problem: (corrupt) damaged; (unsafe) it asks to run code.
    """
    value = sandbox.read("values", path)
    names = value.get("itos") if isinstance(value, dict) else None
    if isinstance(names, dict):
        names = [names.get(i) for i in range(len(names))]
    ids = value.get("stoi") if isinstance(value, dict) else None
    if not isinstance(names, list) or ids != {name: i for i, name in enumerate(names)}:
        raise unknown(path, "its stoi and itos do not number the same tokens from 0")
    special = 0  # <PAD> and <UNK>, which `write_meta` may have put first
    while special < len(names) and names[special] in ("<PAD>", "<UNK>"):
        special += 1
    specials, chars = tuple(names[:special]), tuple(names[special:])
    if not all(isinstance(char, str) and len(char) == 1 for char in chars) or not chars:
        raise unknown(path, "its tokens are not single characters")
    if specials and "<UNK>" not in specials:
        raise unknown(path, f"it has {specials} and no <UNK>")
    return CharTokenizer(chars, specials=specials)


def write_meta(path: Path, tokenizer: CharTokenizer) -> None:
    """Writes the file as nanoGPT does."""
    names = [*tokenizer.specials, *tokenizer.chars]
    meta = {
        "vocab_size": len(names),
        "itos": dict(enumerate(names)),
        "stoi": {name: i for i, name in enumerate(names)},
    }
    with path.open("wb") as file:
        write_pickle(file, meta, leaf=_none)


def _none(file: Any, tensor: Any) -> None:
    raise TypeError("there are no tensors in it")
