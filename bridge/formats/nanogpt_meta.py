"""nanoGPT's `meta.pkl`: the characters of a text, beside the tokens that were made of it.

It is a pickle, read as data. Source: karpathy/nanoGPT, `data/shakespeare_char/prepare.py` (what is
saved) and `sample.py` (which looks for it in `data/DATASET`, the name that the checkpoint's
`config` says).
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
_NAME = re.compile(r"\w[\w.-]{0,99}")  # of a folder, which leads nowhere else
DATASET = "characters"
"""What a checkpoint calls its data, where it has no name for them."""


def places(folder: Path, dataset: Any = None) -> Iterator[Path]:
    """Where the file of a checkpoint in a folder may lie.

    nanoGPT keeps it with the data, in `data/DATASET`; its `out_dir` stands beside `data`.
    """
    yield folder / FILE
    if isinstance(dataset, str) and _NAME.fullmatch(dataset):
        yield folder / "data" / dataset / FILE
        yield folder.absolute().parent / "data" / dataset / FILE


def read_meta(path: Path) -> CharTokenizer:
    """The characters in the file.

    Raises:
        UnknownTokenizer: its tokens are none.
        Problem: (corrupt) damaged; (unsafe) it asks to run code.
    """
    said = sandbox.read("values", path)
    names = said.get("itos") if isinstance(said, dict) else None
    if isinstance(names, dict):
        names = [names.get(i) for i in range(len(names))]
    ids = said.get("stoi") if isinstance(said, dict) else None
    if not isinstance(names, list) or ids != {name: i for i, name in enumerate(names)}:
        raise unknown(path, "it has no stoi and itos that number the same tokens from 0 on")
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
    said = {
        "vocab_size": len(names),
        "itos": dict(enumerate(names)),
        "stoi": {name: i for i, name in enumerate(names)},
    }
    with path.open("wb") as file:
        write_pickle(file, said, leaf=_none)


def _none(file: Any, tensor: Any) -> None:
    raise TypeError("there are no tensors in it")
