"""GGUF files of wikigpt, for llama.cpp, which calls the architecture "gpt2".

They are read by a bounded reader of our own and written with llama.cpp's library. llama.cpp
computes GELU by tanh, so a model with the exact form gets a note.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import Tensor
from bridge.formats import gguf_vocabulary, gguf_writer
from bridge.formats.format import Format
from bridge.formats.gguf_writer import ARCH, EPSILON, FIELDS, OURS
from bridge.formats.raw import RawCheckpoint, checked, origin_of
from bridge.storage.gguf_reader import is_quantised, looks_like_gguf, read_gguf
from data_pipelines.errors import DataProblem
from data_pipelines.transformers_files import UnknownTokenizer
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.reading import json_object

HEAD, EMBEDDING = "output.weight", "token_embd.weight"
_HEADS_KV = f"{ARCH}.attention.head_count_kv"
# Further keys of the model that change nothing, or must have this value.
_ONLY = {f"{ARCH}.attention.causal": True, f"{ARCH}.use_parallel_residual": False}
_VOCAB = f"{ARCH}.vocab_size"  # optional: the embedding has as many rows
_IDLE = {f"{ARCH}.attention.layer_norm_epsilon", _VOCAB, _HEADS_KV}
# llama.cpp always computes the tanh form.
_USUAL = {"gelu": "tanh", "dropout": 0.0}


def is_file(path: Path) -> bool:
    """Whether a file is GGUF."""
    return looks_like_gguf(path)


def is_folder(folder: Path) -> bool:
    """Whether a folder has exactly one GGUF file."""
    return len(_files(folder)) == 1


def open_folder(folder: Path) -> RawCheckpoint:
    """The file in a folder."""
    contents = open_file(_files(folder)[0])
    contents.path, contents.tensors = folder, checked(folder, contents.tensors)
    contents.origin = {**origin_of(folder), **contents.origin}
    return contents


def open_file(path: Path) -> RawCheckpoint:
    """One GGUF file.

    Raises:
        Problem: (corrupt) damaged; (mismatch) of an unsupported architecture, with keys that
            wikigpt does not have, or with different numbers of tokens and rows of the embedding.
    """
    keys, tensors = read_gguf(path)
    _check_kind(path, keys)
    arch, epsilon = (
        keys.get("general.architecture"),
        keys.get(f"{ARCH}.attention.layer_norm_epsilon"),
    )
    if arch != ARCH or (epsilon is not None and not _near(epsilon)):
        raise Problem(
            "the GGUF file holds a model of an unsupported kind",
            where=str(path),
            why=f"its architecture is {str(arch)[:80]!r}; {ARCH!r} is read"
            if arch != ARCH
            else f"its epsilon is {epsilon}; wikigpt's is {EPSILON}",
            fix="convert another checkpoint of the model",
            exit_code=MISMATCH,
        )
    _check_keys(path, keys)
    _check_list(path, keys, tensors)
    tensors, notes = _without_head(path, tensors)
    tokenizer, unread = None, ""
    try:
        fields = _fields(keys)
        tokenizer = gguf_vocabulary.tokenizer_in(keys, str(path))
    except UnknownTokenizer as problem:
        unread = problem.why
    except (DataProblem, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(
            "the GGUF file's description of the model cannot be read",
            where=str(path),
            why=str(error)[:300],
            fix="fetch or save the file again",
            exit_code=getattr(error, "exit_code", CORRUPT),  # a tokeniser may be unsafe
        ) from None
    return RawCheckpoint(
        path,
        "gguf",
        tensors,
        arch="wikigpt",
        fields=fields,
        usual={name: value for name, value in _USUAL.items() if name not in fields},
        tokenizer=tokenizer,
        tokenizer_inside=tokenizer is not None,
        unread=unread,
        notes=[*notes, *gguf_vocabulary.notes_of(keys)],
        quantised=frozenset(name for name, tensor in tensors.items() if is_quantised(tensor)),
        table="GGUF",
    )


def _check_kind(path: Path, keys: dict[str, Any]) -> None:
    """Refuses files that do not hold a model, or only a part of one."""
    kind, parts = keys.get("general.type", "model"), keys.get("split.count", 1)
    if kind != "model":
        what, fix = (
            f"the GGUF file holds no model: its type is {str(kind)[:80]!r}",
            "give the GGUF file of the model itself",
        )
    elif parts not in (0, 1):
        what = f"the GGUF file is one of {str(parts)[:20]} parts of a model"
        fix = "join them: `llama-gguf-split --merge FIRST_PART OUTPUT`"
    else:
        return
    raise Problem(what, where=str(path), fix=fix, exit_code=MISMATCH)


def _fields(keys: dict[str, Any]) -> dict[str, Any]:
    """Fields of wikigpt's Config; ValueError if the file contradicts itself."""
    own = json_object(str(keys.get(OURS, "{}")).encode())
    names = {**FIELDS, _VOCAB: "vocab"}
    stated = {field: keys[key] for key, field in names.items() if key in keys}
    for field, value in stated.items():
        if own.get(field, value) != value:
            raise ValueError(f"it says {field} = {value} and {own[field]}")
    usual = {}
    if (tokens := gguf_vocabulary.used(keys)) is not None:
        usual["tokens"] = tokens
    return {**usual, **own, **stated}


def _check_keys(path: Path, keys: dict[str, Any]) -> None:
    """Refuses keys of the model that are not known: they may change what it computes."""
    heads = keys.get(f"{ARCH}.attention.head_count")
    only = {**_ONLY, _HEADS_KV: heads}
    for key, value in keys.items():
        if not key.startswith(f"{ARCH}.") or key in FIELDS:
            continue
        if value != only.get(key, value) or key not in (*only, *_IDLE):
            raise Problem(
                f"the GGUF file says {key[:80]} = {str(value)[:80]}, which is not supported",
                where=str(path),
                why=f"{only[key]} is computed only" if key in only else "the key is not known",
                fix="convert another checkpoint of the model; the numbers of this one would be "
                "wrong",
                exit_code=MISMATCH,
            )


def _check_list(path: Path, keys: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuses a list of tokens that is not as long as the embedding, as llama.cpp does: it is not
    known which row belongs to which token."""
    tokens, embedding = gguf_vocabulary.listed(keys), tensors.get(EMBEDDING)
    if tokens is None or embedding is None or not embedding.shape or tokens == embedding.shape[0]:
        return
    raise Problem(
        f"the GGUF file lists {tokens} tokens, and {EMBEDDING} has {embedding.shape[0]} rows",
        where=str(path),
        why="llama.cpp refuses it too: each row belongs to one token of the list",
        fix="convert the original model again, its tokeniser beside it",
        exit_code=MISMATCH,
    )


def _without_head(path: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Takes out a head that repeats the embedding, as some converters write it."""
    if HEAD not in tensors or EMBEDDING not in tensors:
        return tensors, []
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    if head.shape != embedding.shape or not np.array_equal(head.read(), embedding.read()):
        raise Problem(
            f"{HEAD} is not the same as {EMBEDDING}",
            where=str(path),
            why="wikigpt ties them",
            fix="a model with a head of its own (or one that was quantised otherwise than the "
            "embedding) cannot be held here",
            exit_code=MISMATCH,
        )
    others = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    return others, [f"{HEAD} repeats {EMBEDDING}, to which it is tied"]


def _near(epsilon: Any) -> bool:
    """Whether a value is wikigpt's epsilon, to the precision of float32."""
    return isinstance(epsilon, float) and abs(epsilon - EPSILON) < 1e-3 * EPSILON


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_file(path)]


FORMAT = Format(
    "gguf",
    "a GGUF file of the architecture gpt2, or a folder with one",
    is_file=is_file,
    open_file=open_file,
    is_folder=is_folder,
    open_folder=open_folder,
    endings=(".gguf",),
    write=gguf_writer.write,
    needs="gguf",
    arch="wikigpt",
    tables=("GGUF",),
    file=lambda origin: gguf_writer.FILE,
    filled=True,
    notes=gguf_writer.notes,
    moments=None,
    stays_float32=gguf_writer.stays_float32,
    quantisation=gguf_writer.QUANTISATION,
)
