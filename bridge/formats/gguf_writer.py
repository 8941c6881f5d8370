"""Writes GGUF files of wikigpt with llama.cpp's library, as its architecture "gpt2".

Matrices are float32, float16, bfloat16 or Q8_0; vectors and positions always float32, as llama.cpp
expects. Config fields that GGUF has no key for are kept under a key of our own.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bridge.core.tensors import DTYPES, Tensor, cast, raw
from bridge.formats import gguf_vocabulary
from bridge.formats.format import Output, Quantisation
from bridge.storage.gguf_reader import BLOCK, Q8_0, dequantised, stored_bytes
from data_pipelines.tokenizers import Tokenizer
from jaxmodels.errors import MISMATCH, Problem

FILE, ARCH = "model.gguf", "gpt2"
OURS = "jaxmodels.config"
EPSILON = 1e-5
# GGUF's key → field of wikigpt's Config.
FIELDS = {
    f"{ARCH}.context_length": "context",
    f"{ARCH}.embedding_length": "dim",
    f"{ARCH}.feed_forward_length": "hidden",
    f"{ARCH}.block_count": "layers",
    f"{ARCH}.attention.head_count": "heads",
}
# ggml's numbers of types, and of a file in which most tensors have that type.
_TYPES = {DTYPES["F32"]: (0, 0), DTYPES["F16"]: (1, 1), Q8_0: (8, 7), DTYPES["BF16"]: (30, 32)}


def notes(config: Any, origin: dict[str, Any], tokenizer: Tokenizer | None) -> list[str]:
    """What llama.cpp does differently."""
    notes = []
    if config.gelu == "exact":
        notes.append(
            "llama.cpp computes the tanh form of GELU, this model the exact one: values may "
            "differ by up to 5e-4 in each block"
        )
    if gguf_vocabulary.keys_of(tokenizer, config.vocab)["tokenizer.ggml.model"] == "none":
        notes.append("there is no vocabulary: llama.cpp can only take and return token ids")
    return notes


def stays_float32(path: str, tensor: Tensor) -> bool:
    """Whether a parameter (our path) is always float32, as llama.cpp expects vectors and
    positions."""
    return len(tensor.shape) < 2 or path.startswith("pos/") or tensor.dtype.itemsize > 4


def _rounded(tensor: Tensor, report: Callable[[str, float], None]) -> Tensor:
    """A matrix in GGUF's layout, rounded to Q8_0: float32, unread.

    A matrix whose rows are not a multiple of a block stays float32, which llama.cpp accepts.
    """
    exact = cast(tensor, DTYPES["F32"])
    if not _can_quantise(tensor.shape):
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
        report(tensor.name, float(np.abs(values - kept).max(initial=0.0)))
        return kept

    return replace(exact, read=read)


def _can_quantise(shape: tuple[int, ...]) -> bool:
    """Whether a matrix consists of whole blocks."""
    return len(shape) == 2 and shape[1] % BLOCK == 0


QUANTISATION = Quantisation(
    "q8_0", _can_quantise, _rounded, lambda shape: stored_bytes(shape, Q8_0)
)


def write(output: Output) -> None:
    """Writes `model.gguf`, one tensor at a time. Digests are of the values before rounding."""
    import gguf

    tensors = output.tensors
    path = output.folder / FILE
    stored = {n: Q8_0 if n in output.quantised else t.dtype for n, t in tensors.items()}
    largest = max(tensors, key=lambda name: tensors[name].size)
    writer = gguf.GGUFWriter(path, ARCH)
    writer.add_file_type(_TYPES[stored[largest]][1])
    _describe(writer, output.config, output.tokenizer)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(_TYPES[stored[name]][0])
        size = stored_bytes(tensor.shape, stored[name])
        writer.add_tensor_info(name, tensor.shape, tensor.dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    # The library would hold all arrays; here each is read, written and freed.
    with path.open("ab") as file:
        for name, tensor in tensors.items():
            array = output.read(tensor)
            file.write(bytes(-file.tell() % writer.data_alignment))
            file.write(raw(_blocks(array) if name in output.quantised else array).data)
        file.write(bytes(-file.tell() % writer.data_alignment))


def _describe(writer: Any, config: Any, tokenizer: Tokenizer | None) -> None:
    for key, field in FIELDS.items():
        writer.add_uint32(key, getattr(config, field))
    writer.add_layer_norm_eps(EPSILON)
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


def _blocks(values: np.ndarray) -> np.ndarray:
    """A float32 matrix as blocks of Q8_0, row by row."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(np.ascontiguousarray(values), kind).reshape(-1).view(Q8_0)
