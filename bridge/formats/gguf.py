"""GGUF files of wikigpt: what llama.cpp runs, as its architecture "gpt2".

Matrices are float32, float16, bfloat16 or Q8_0; vectors and positions always float32, as llama.cpp
expects. Config fields that GGUF has no key for are kept under a key of our own.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import DTYPES, Fingerprint, Tensor, cast, fingerprint, raw
from bridge.formats import gguf_vocabulary
from bridge.formats.raw import RawCheckpoint, checked, origin_of
from bridge.storage.gguf_reader import (
    BLOCK,
    Q8_0,
    dequantised,
    is_quantised,
    looks_like_gguf,
    read_gguf,
    stored_bytes,
)
from data_pipelines.errors import DataProblem
from data_pipelines.tokenizers import Tokenizer
from data_pipelines.transformers_files import UnknownTokenizer
from jaxmodels.errors import CORRUPT, MISMATCH, USAGE, Problem
from jaxmodels.reading import json_object

FORMAT, FILE, ARCH = "gguf", "model.gguf", "gpt2"
QUANTISED = "q8_0"
"""The choice of `--dtype` that only this target has."""
OURS = "jaxmodels.config"
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
_EPSILON = 1e-5
# GGUF's key → field of wikigpt's Config.
_FIELDS = {
    f"{ARCH}.context_length": "context",
    f"{ARCH}.embedding_length": "dim",
    f"{ARCH}.feed_forward_length": "hidden",
    f"{ARCH}.block_count": "layers",
    f"{ARCH}.attention.head_count": "heads",
}
_HEADS_KV = f"{ARCH}.attention.head_count_kv"
# Further keys of the model that change nothing, or must have this value.
_ONLY = {f"{ARCH}.attention.causal": True, f"{ARCH}.use_parallel_residual": False}
_VOCAB = f"{ARCH}.vocab_size"  # read where it is there; the embedding says it too
_IDLE = {f"{ARCH}.attention.layer_norm_epsilon", _VOCAB, _HEADS_KV}
# llama.cpp computes the tanh form whatever the model was trained with.
_USUAL = {"gelu": "tanh", "dropout": 0.0}
# ggml's numbers of types, and of a file in which most tensors have that type.
_TYPES = {DTYPES["F32"]: (0, 0), DTYPES["F16"]: (1, 1), Q8_0: (8, 7), DTYPES["BF16"]: (30, 32)}


def is_file(path: Path) -> bool:
    """Whether a file is GGUF."""
    return looks_like_gguf(path)


def is_folder(folder: Path) -> bool:
    """Whether one GGUF file lies in a folder."""
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
        Problem: (corrupt) damaged; (mismatch) of an architecture that is not read, or of one
            that computes something else than wikigpt, or with other tokens than rows for them.
    """
    said, tensors = read_gguf(path)
    arch, epsilon = (
        said.get("general.architecture"),
        said.get(f"{ARCH}.attention.layer_norm_epsilon"),
    )
    if arch != ARCH or (epsilon is not None and not _near(epsilon)):
        raise Problem(
            "the GGUF file holds another kind of model",
            where=str(path),
            why=f"its architecture is {str(arch)[:80]!r}; {ARCH!r} is read"
            if arch != ARCH
            else f"its epsilon is {epsilon}; wikigpt's is {_EPSILON}",
            fix="convert another checkpoint of the model",
            exit_code=MISMATCH,
        )
    _check_keys(path, said)
    _check_list(path, said, tensors)
    tensors, notes = _without_head(path, tensors)
    tokenizer, unread = None, ""
    try:
        fields = _fields(said)
        tokenizer = gguf_vocabulary.tokenizer_in(said, str(path))
    except UnknownTokenizer as problem:
        unread = problem.why
    except (DataProblem, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(
            "what the GGUF file says of the model cannot be read",
            where=str(path),
            why=str(error)[:300],
            fix="fetch or save the file again",
            exit_code=getattr(error, "exit_code", CORRUPT),  # a tokeniser may be unsafe
        ) from None
    return RawCheckpoint(
        path,
        FORMAT,
        tensors,
        arch="wikigpt",
        fields=fields,
        usual={name: value for name, value in _USUAL.items() if name not in fields},
        tokenizer=tokenizer,
        unread=unread,
        notes=[*notes, *gguf_vocabulary.notes_of(said)],
        quantised=frozenset(name for name, tensor in tensors.items() if is_quantised(tensor)),
        table="GGUF",
    )


def notes_on(config: Any, tokenizer: Tokenizer | None) -> list[str]:
    """What llama.cpp will do otherwise than this model."""
    notes = []
    if config.gelu == "exact":
        notes.append(
            "llama.cpp computes the tanh form of GELU, this model the exact one: a number may "
            "differ by up to 5e-4 in each block"
        )
    if gguf_vocabulary.keys_of(tokenizer, config.vocab)["tokenizer.ggml.model"] == "none":
        notes.append("llama.cpp gets no vocabulary: it takes and gives token ids only")
    return notes


def stays_float32(path: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp wants a parameter (our path) in float32 in any case."""
    return len(shape) < 2 or path.startswith("pos/")


def rounded(tensor: Tensor, told: Callable[[str, float], None]) -> Tensor:
    """A matrix in their layout as Q8_0 keeps it: float32, unread; `told` as in `tensors.cast`.

    One whose rows are no whole blocks stays float32, which llama.cpp takes as well.
    """
    exact = cast(tensor, DTYPES["F32"])
    if not can_quantise(tensor.shape):
        return exact

    def read() -> np.ndarray:
        values = exact.read()
        kept = dequantised(_blocks(values)).reshape(values.shape)
        if not np.isfinite(kept).all():
            raise Problem(
                f"{tensor.name} has values that Q8_0 cannot hold",
                why=f"the largest is {np.abs(values).max():.3g}",
                fix="use another --dtype",
                exit_code=MISMATCH,
            )
        told(tensor.name, float(np.abs(values - kept).max(initial=0.0)))
        return kept

    return replace(exact, read=read)


def can_quantise(shape: tuple[int, ...]) -> bool:
    """Whether a matrix consists of whole blocks."""
    return len(shape) == 2 and shape[1] % BLOCK == 0


def write_gguf(
    folder: Path,
    tensors: dict[str, Tensor],
    config: Any,
    tokenizer: Tokenizer | None,
    quantised: frozenset[str],
    tell: Callable[[Tensor], None],
) -> dict[str, Fingerprint]:
    """Writes `model.gguf`, one tensor at a time.

    Args:
        folder: an existing folder.
        tensors: GGUF's name → tensor.
        config: wikigpt's Config.
        tokenizer: the model's.
        quantised: names of those that are written as Q8_0.
        tell: called after each tensor.

    Returns:
        name → {"dtype", "shape", digest}, of the values as they will be read.
    """
    gguf = library()
    path, digests = folder / FILE, {}
    stored = {n: Q8_0 if n in quantised else tensor.dtype for n, tensor in tensors.items()}
    largest = max(tensors, key=lambda name: tensors[name].size)
    writer = gguf.GGUFWriter(path, ARCH)
    writer.add_file_type(_TYPES[stored[largest]][1])
    _describe(writer, config, tokenizer)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(_TYPES[stored[name]][0])
        size = stored_bytes(tensor.shape, stored[name])
        writer.add_tensor_info(name, tensor.shape, tensor.dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    # The library writes arrays that it holds; here each is read, written and let go.
    with path.open("ab") as file:
        for name, tensor in tensors.items():
            array = tensor.read()
            file.write(bytes(-file.tell() % writer.data_alignment))
            file.write(raw(_blocks(array) if name in quantised else array).data)
            digests[name] = fingerprint(array)
            tell(tensor)
        file.write(bytes(-file.tell() % writer.data_alignment))
    return digests


def library() -> Any:
    """The package `gguf`.

    Raises:
        Problem: (usage) it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise Problem(
            "GGUF files are written with the package gguf, which is not here",
            why=str(error),
            fix="pip install 'jaxmodels[gguf]'",
            exit_code=USAGE,
        ) from None
    return gguf


def _describe(writer: Any, config: Any, tokenizer: Tokenizer | None) -> None:
    for key, field in _FIELDS.items():
        writer.add_uint32(key, getattr(config, field))
    writer.add_layer_norm_eps(_EPSILON)
    writer.add_string(OURS, json.dumps(asdict(config)))
    for key, value in gguf_vocabulary.keys_of(tokenizer, config.vocab).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _fields(said: dict[str, Any]) -> dict[str, Any]:
    """Fields of wikigpt's Config; ValueError where the file contradicts itself."""
    own = json_object(str(said.get(OURS, "{}")).encode())
    keys = {**_FIELDS, _VOCAB: "vocab"}
    told = {field: said[key] for key, field in keys.items() if key in said}
    for field, value in told.items():
        if own.get(field, value) != value:
            raise ValueError(f"it says {field} = {value} and {own[field]}")
    usual = {}
    if (tokens := gguf_vocabulary.used(said)) is not None:
        usual["tokens"] = tokens
    return {**usual, **own, **told}


def _check_keys(path: Path, said: dict[str, Any]) -> None:
    """Refuses keys of the model that are not known: they may change what it computes."""
    heads = said.get(f"{ARCH}.attention.head_count")
    only = {**_ONLY, _HEADS_KV: heads}
    for key, value in said.items():
        if not key.startswith(f"{ARCH}.") or key in _FIELDS:
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


def _check_list(path: Path, said: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuses a list of tokens that is not the embedding's, as llama.cpp does: which rows belong
    to which tokens is then not known."""
    tokens, embedding = gguf_vocabulary.listed(said), tensors.get(EMBEDDING)
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
    """Whether a value is wikigpt's epsilon, as far as float32 tells."""
    return isinstance(epsilon, float) and abs(epsilon - _EPSILON) < 1e-3 * _EPSILON


def _blocks(values: np.ndarray) -> np.ndarray:
    """A float32 matrix as blocks of Q8_0, row by row."""
    gguf = library()
    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(np.ascontiguousarray(values), kind).reshape(-1).view(Q8_0)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_file(path)]
