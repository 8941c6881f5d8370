"""A tensor that is read when it is needed, and the dtypes that cross the bridge."""

import fnmatch
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

from jaxmodels.cli import visible
from jaxmodels.errors import MISMATCH, USAGE, Problem

# Name in a safetensors header → dtype in memory; always little-endian on disk.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOATS = ("float32", "bfloat16", "float16")

# Norms, gates, temperatures and other scales: numbers that everything is multiplied by, and few.
# ls1 and ls2 are LayerScale's, gates of what a block adds.
DELICATE = ("*norm*", "*gate*", "*alpha*", "*temperature*", "*gamma*", "*scale*", "*/ls[12]")
NO_LIST = "none"

TILE = 256, 64
PIECE = 2**22  # bytes of an array that are turned round at once

# Distinguishes the values of tensors; no proof against forgery, which the sha256 of files
# is, and fifteen times as fast. Manifests of earlier versions have sha256 here too.
DIGEST = "xxh3_128"
DIGESTS: dict[str, Callable[[], Any]] = {DIGEST: xxhash.xxh3_128, "sha256": hashlib.sha256}

Fingerprint = dict[str, Any]  # dtype, shape, and one of DIGESTS by its name


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    """Reads the values: an array of this shape and dtype."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the values take."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{visible(self.name)}  {self.shape}  {self.dtype}"


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype holds floating-point numbers; bfloat16 does, though numpy says no."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype == DTYPES["BF16"]


def raw(array: np.ndarray) -> np.ndarray:
    """The values as bytes (uint8 [n]): row by row, little-endian, whatever the layout given."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return _contiguous(little).reshape(-1).view(np.uint8)


def _contiguous(array: np.ndarray) -> np.ndarray:
    """The array in row-major order. A column-major one is transposed in tiles that fit the caches,
    several times as fast as by numpy."""
    if array.ndim != 2 or array.flags.c_contiguous or array.strides[0] >= array.strides[1]:
        return np.ascontiguousarray(array)
    rows, columns = TILE
    result = np.empty(array.shape, array.dtype)
    for i in range(0, array.shape[0], rows):
        for j in range(0, array.shape[1], columns):
            result[i : i + rows, j : j + columns] = array[i : i + rows, j : j + columns]
    return result


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """`raw` in pieces; of an array that is not contiguous, a few rows are copied at a time."""
    if array.ndim < 2 or array.nbytes <= PIECE or array.flags.c_contiguous:
        yield raw(array)
        return
    rows = max(1, PIECE * len(array) // array.nbytes)
    rows = rows // TILE[0] * TILE[0] or rows
    for start in range(0, len(array), rows):
        yield raw(array[start : start + rows])


def digest_of(array: np.ndarray, name: str = DIGEST) -> str:
    """One of DIGESTS, of the values as `raw` gives them, in hexadecimal."""
    digest = DIGESTS[name]()
    for piece in pieces(array):
        digest.update(piece.data)
    return digest.hexdigest()


def fingerprint(array: np.ndarray) -> Fingerprint:
    """What a manifest says of a tensor."""
    return entry(array.dtype, array.shape, digest_of(array))


def entry(dtype: np.dtype, shape: tuple[int, ...], digest: str) -> Fingerprint:
    """What a manifest says of a tensor whose digest is known."""
    return {"dtype": DTYPE_CODES[dtype], "shape": list(shape), DIGEST: digest}


def cast(
    tensor: Tensor, dtype: np.dtype, on_rounding: Callable[[str, float], None] = lambda *_: None
) -> Tensor:
    """The tensor in another floating-point dtype; integers and booleans stay as they are.

    Args:
        tensor: the tensor, unread.
        dtype: the dtype to round to.
        on_rounding: called with name and largest absolute rounding error once the tensor is read.

    Raises:
        Problem: (mismatch, when it is read) a finite value becomes infinite.
    """
    if tensor.dtype == dtype or not is_float(tensor.dtype):
        return tensor

    def read() -> np.ndarray:
        exact = tensor.read()
        with np.errstate(over="ignore"):
            rounded = exact.astype(dtype)
        finite = np.isfinite(exact)
        if not np.isfinite(rounded[finite]).all():
            raise Problem(
                f"{tensor.name} has values that {dtype} cannot hold",
                why=f"the largest is {np.abs(exact[finite]).max():.3g}",
                fix="use --dtype bfloat16 or keep, or --keep-fp32 with its path",
                exit_code=MISMATCH,
            )
        error = np.abs(exact[finite] - rounded[finite].astype(exact.dtype))
        on_rounding(tensor.name, float(error.max(initial=0.0)))
        return rounded

    return Tensor(tensor.name, tensor.shape, dtype, read)


def target_dtype(name: str | None) -> np.dtype | None:
    """The dtype of a `--dtype` choice; None for "keep".

    Raises:
        Problem: (usage) it is not keep, float32, bfloat16 or float16.
    """
    if name in (None, "keep"):
        return None
    if name not in FLOATS:
        raise Problem(
            f"unknown dtype: {name!r}", why=f"known: keep, {', '.join(FLOATS)}", exit_code=USAGE
        )
    return DTYPES["BF16"] if name == "bfloat16" else np.dtype(name)


def kept_in_float32(path: str, shape: tuple[int, ...], patterns: tuple[str, ...]) -> bool:
    """Whether a parameter stays in float32 when others are rounded.

    Args:
        path: our path.
        shape: its shape.
        patterns: those of `--keep-fp32` (`*` is anything), besides DELICATE; "none" among them
            switches that off.
    """
    if NO_LIST not in patterns and len(shape) < 2 and _matches(path, DELICATE):
        return True
    return _matches(path, patterns)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """How far two arrays of one shape are apart.

    Returns:
        `equal` (every value is; NaN equals itself), `max_abs` (0 for empty
        arrays, NaN where only one has it) and `cosine` (1 when both are all zero).
    """
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(np.where(same, 0.0, x - y)).max(initial=0.0)
        norms = float(np.linalg.norm(x) * np.linalg.norm(y))
        both_zero = not x.any() and not y.any()
        cosine = 1.0 if both_zero else float(x @ y) / norms if norms else 0.0
    return {"equal": bool(same.all()), "max_abs": float(difference), "cosine": cosine}
