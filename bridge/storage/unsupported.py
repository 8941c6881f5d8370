"""Files that are no checkpoint, or one of a kind that is not read: what they are, by their content.

Only the first bytes are looked at. Sources: git-lfs's specification; the file formats' own; llm.c's
`train_gpt2.c`; ggml's history.
"""

import re
from pathlib import Path
from typing import NamedTuple

from jaxmodels.errors import CORRUPT, Problem

_STEP = re.compile(r"checkpoint-\d+")  # folders of transformers' Trainer
START = 512  # bytes that are looked at
AGAIN = "fetch the file again"
TORCH = "convert the PyTorch weights (safetensors or pytorch_model.bin) of the same model instead"


class FileKind(NamedTuple):
    """What a file is, to follow "it is", and what its owner can do."""

    what: str
    fix: str


_POINTER = FileKind(
    "a git-lfs pointer: it stands for a large file that was not fetched",
    "fetch the file itself, with `git lfs pull` or `huggingface-cli download`",
)
_PAGE = FileKind("a web page (HTML), which a server sent instead of the file", AGAIN)
_ANSWER = FileKind("a server's answer (XML) instead of the file", AGAIN)
_EMPTY = FileKind("empty", AGAIN)
_ZEROS = FileKind("filled with zeros, as an interrupted download leaves it", AGAIN)
_ARCHIVE = FileKind("a compressed file or an archive", "unpack it first, and give what was in it")
_HDF5 = FileKind("an HDF5 file, in which TensorFlow and Keras keep weights (tf_model.h5)", TORCH)
FLAX = FileKind("a msgpack file, in which Flax keeps weights (flax_model.msgpack)", TORCH)
_KERAS = FileKind("a Keras model", TORCH)
_TO_FILE = "save the tensors by their names, as safetensors or with torch.save"
_NUMPY = FileKind("a NumPy file, arrays that are not a checkpoint of a known format", _TO_FILE)
_PROGRAM = FileKind("a program that torch.export saved, with code", _TO_FILE)
DISTRIBUTED = FileKind(
    "a part of torch's distributed checkpoint (FSDP), whose tensors lie in pieces",
    "join its folder into one file, and give that: "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
)
_ONNX = FileKind("an ONNX graph", TORCH)
_LITE = FileKind("a TensorFlow Lite model", TORCH)
_LLMC = FileKind("a file of llm.c", "convert the PyTorch weights that it was made from instead")
_GGML = FileKind(
    "a ggml file of before GGUF, which llama.cpp itself no longer reads",
    "convert the original model instead, or a GGUF file of it",
)

_STARTS = {
    b"version https://git-lfs": _POINTER,
    b"<?xml": _ANSWER,
    b"\x1f\x8b": _ARCHIVE,  # gzip
    b"\x28\xb5\x2f\xfd": _ARCHIVE,  # zstandard
    b"\xfd7zXZ\0": _ARCHIVE,
    b"BZh": _ARCHIVE,
    b"7z\xbc\xaf": _ARCHIVE,
    b"Rar!": _ARCHIVE,
    b"\x89HDF\r\n\x1a\n": _HDF5,
    b"\x93NUMPY": _NUMPY,
    b"lmgg": _GGML,  # the numbers "ggml", "ggmf", "ggjt" and "ggla", little-endian
    b"fmgg": _GGML,
    b"tjgg": _GGML,
    b"algg": _GGML,
}
# Numbers that llm.c's files of models, states, tokenisers and tokens begin with.
_LLMC_NUMBERS = {20240326, 20240327, 20240328, 20240520, 20240522}
# Endings of names that downloads which are not done have, or tools that keep weights in files
# whose content shows nothing.
_ENDINGS = {
    **dict.fromkeys(
        (".incomplete", ".part", ".crdownload", ".download", ".aria2"),
        FileKind("a download that did not end", AGAIN),
    ),
    ".onnx": _ONNX,
    ".distcp": DISTRIBUTED,
    ".npz": _NUMPY,
    ".keras": _KERAS,
    ".pt2": _PROGRAM,
    ".msgpack": FLAX,
    ".h5": _HDF5,
    ".ot": FileKind("a file of rust-bert", TORCH),
    ".mlmodel": FileKind("a Core ML model", TORCH),
    ".ckpt.index": FileKind("a TensorFlow checkpoint", TORCH),
    ".ckpt.meta": FileKind("a TensorFlow checkpoint", TORCH),
    ".data-00000-of-00001": FileKind("a TensorFlow checkpoint", TORCH),
}


def kind_of(path: Path, text: bool = True) -> FileKind | None:
    """What a file is that cannot be read; None for one that may be part of a checkpoint.

    `text` says whether it may be text, as JSON is and weights are not.
    """
    with path.open("rb") as file:
        start = file.read(START)
    return _by_content(start) or _by_name(path.name) or (None if text else _by_text(start))


def refuse(path: Path, text: bool = False) -> None:
    """Refuses a file that certainly is not what it should be; `text` as in `kind_of`.

    Raises:
        Problem: (corrupt) it is, for example, a git-lfs pointer or a web page.
    """
    if found := kind_of(path, text):
        raise problem(path, found)


def problem(path: Path, kind: FileKind) -> Problem:
    """The message about a file of this kind."""
    return Problem(
        f"{path.name} cannot be read",
        where=str(path),
        why=f"it is {kind.what}",
        fix=kind.fix,
        exit_code=CORRUPT,
    )


def found_in(folder: Path) -> tuple[list[str], str]:
    """A line for each file in a folder that cannot be read, and what to do; empty if none."""
    paths = sorted(folder.iterdir())
    kinds = {path.name: kind for path in paths if path.is_file() and (kind := kind_of(path))}
    fix = next((kind.fix for kind in kinds.values()), "")
    folders = [path.name for path in paths if path.is_dir()]
    if inside := [name for name in folders if any((folder / name).glob("*.distcp"))]:
        kinds |= dict.fromkeys(inside, DISTRIBUTED)
        fix = fix or DISTRIBUTED.fix.replace("FOLDER", inside[0])
    if steps := [name for name in folders if _STEP.fullmatch(name)]:
        steps.sort(key=lambda name: int(name.rpartition("-")[2]))
        fix = f"it is a Trainer's; give one of its checkpoints: {', '.join(steps[-3:])}"
    if {"blobs", "snapshots"} <= {*folders}:
        held = sorted(path.name for path in (folder / "snapshots").iterdir())
        fix = f"it is of the hub's cache; give one of its snapshots/: {', '.join(held[:3])}"
    return [f"{name} is {kind.what}" for name, kind in kinds.items()], fix


def _by_content(start: bytes) -> FileKind | None:
    if not start:
        return _EMPTY
    if not start.strip(b"\0"):
        return _ZEROS
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return _PAGE
    if found := next((kind for begin, kind in _STARTS.items() if start.startswith(begin)), None):
        return found
    if start[257:262] == b"ustar":
        return _ARCHIVE
    if start[4:8] == b"TFL3":
        return _LITE
    if int.from_bytes(start[:4], "little") in _LLMC_NUMBERS:
        return _LLMC
    return FLAX if _is_flax(start) else _ONNX if _is_onnx(start) else None


def _by_name(name: str) -> FileKind | None:
    return next((kind for end, kind in _ENDINGS.items() if name.lower().endswith(end)), None)


def _by_text(start: bytes) -> FileKind | None:
    """Text, where numbers were expected: most often the error page of a server."""
    text = start.decode("utf-8", "ignore")
    if len(text.encode()) < len(start) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    line = next(iter(text.split("\n")), "").strip()[:80]
    return FileKind(f"text, which begins with {line!r}", AGAIN)


def _is_flax(start: bytes) -> bool:
    """Whether it begins as msgpack does with a map whose first key is a word."""
    head = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else 0)
    if not head or len(start) <= head + 1 or not 0xA1 <= start[head] <= 0xBF:
        return False
    word = start[head + 1 : head + 1 + (start[head] & 0x1F)]
    return word.isascii() and word.decode("ascii").isidentifier()


def _is_onnx(start: bytes) -> bool:
    """Whether it begins as ONNX does: a version of the format, then the producer's name."""
    return len(start) > 16 and start[0] == 8 and 1 <= start[1] <= 20 and start[2:3] == b"\x12"
