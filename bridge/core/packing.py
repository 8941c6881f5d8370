"""Matrices in few bits: ternary ones in 2, with one scale, and others in 8, with one for each row.

In files both are in PyTorch's layout, [rows, …], beside their scale:

    NAME  uint8 [⌈rows/4⌉, columns]   NAME_scale  float32 [1], 1/γ      ternary, as transformers'
                                                                        BitNet has it
    NAME  int8 [rows, …]              NAME_scale  float32 [rows]        the matrix is NAME · scale
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxmodels
from bridge.core.tensors import DTYPES, Tensor
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.runtime.paths import pattern

TERNARY, INT8 = "ternary", "int8"
SCALE = "_scale"
A_BYTE = 4
LARGEST = 127


@dataclass(frozen=True)
class Packed:
    """A matrix in few bits, unread."""

    kind: str
    """TERNARY or INT8."""
    shape: tuple[int, ...]
    """Of the matrix, in PyTorch's layout."""
    values: Tensor
    scale: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The tensors in a file."""
        return self.values, self.scale

    @property
    def nbytes(self) -> int:
        """Bytes of the values and the scales."""
        return self.values.nbytes + self.scale.nbytes

    def unpacked(self) -> Tensor:
        """The matrix that this stands for: float32, unread."""
        return Tensor(self.values.name, self.shape, DTYPES["F32"], partial(_read, self))

    def signs(self) -> np.ndarray:
        """−1, 0 and 1 of a ternary matrix: int8 [rows, columns]."""
        shifts = (2 * np.arange(A_BYTE, dtype=np.uint8))[:, None, None]
        codes = (self.values.read()[None] >> shifts) & 3
        return codes.reshape(-1, self.shape[1])[: self.shape[0]].astype(np.int8) - 1


def kind_of(arch: str, path: str) -> str | None:
    """How a parameter (our path) is packed; None: it stays float32."""
    package = jaxmodels.arch(arch)
    for kind, rows in ((TERNARY, package.TERNARY), (INT8, package.INT8)):
        if any(pattern(row).fullmatch(path) for row in rows):
            return kind
    return None


def pack(tensor: Tensor, kind: str, on_rounding: Callable[[str, float], None]) -> Packed:
    """A matrix in few bits.

    Args:
        tensor: in PyTorch's layout, unread.
        kind: TERNARY or INT8.
        on_rounding: called with name and largest rounding error once the values are read.

    Raises:
        Problem: (mismatch, when it is read) a value is not finite.
    """
    rounded = partial(_ternary if kind == TERNARY else _int8, tensor, on_rounding)
    if kind == TERNARY:
        values, scales = (-(-tensor.shape[0] // A_BYTE), *tensor.shape[1:]), (1,)
    else:
        values, scales = tensor.shape, (_rows(tensor.shape),)
    dtype = np.dtype(np.uint8 if kind == TERNARY else np.int8)
    return Packed(
        kind,
        tensor.shape,
        Tensor(tensor.name, values, dtype, lambda: rounded()[0]),
        Tensor(tensor.name + SCALE, scales, DTYPES["F32"], lambda: rounded()[1]),
    )


def found(tensors: dict[str, Tensor], rows: dict[str, int], where: Path) -> dict[str, Packed]:
    """Name → matrix of those tensors that have a scale beside them, checked when they are read.

    Args:
        tensors: of a packed file.
        rows: name → rows of ternary matrices, where they are no multiple of four.
        where: the file, for messages.

    Raises:
        Problem: (corrupt) values and scale do not go together, or there is no scale; when they
            are read, that they are no ternary values or no scales.
    """
    packed = {}
    for name, values in tensors.items():
        if (scale := tensors.get(name + SCALE)) is None:
            if values.dtype in (np.uint8, np.int8):
                raise Problem(
                    f"{name} has no scale",
                    where=str(where),
                    why=f"it is {values.dtype}, whose values mean nothing without {name + SCALE}",
                    fix="fetch or convert the model again",
                    exit_code=CORRUPT,
                )
            continue
        ternary = values.dtype == np.uint8
        shape = values.shape
        if ternary:
            shape = (rows.get(name, A_BYTE * shape[0]), *shape[1:])
        expected = (1,) if ternary else (_rows(shape),)
        sound = values.dtype in (np.uint8, np.int8) and len(shape) > 1
        sound &= (scale.shape, scale.dtype) == (expected, DTYPES["F32"])
        sound &= not ternary or (len(shape) == 2 and -(-shape[0] // A_BYTE) == values.shape[0])
        if not sound:
            raise Problem(
                f"{name} is not packed as it should be",
                where=str(where),
                why=f"{values}, {scale}",
                fix="convert the model again",
                exit_code=CORRUPT,
            )
        scale = replace(scale, read=partial(_read_scale, scale, ternary))
        values = replace(values, read=partial(_read_codes, values)) if ternary else values
        packed[name] = Packed(TERNARY if ternary else INT8, shape, values, scale)
    return packed


def _read_scale(scale: Tensor, ternary: bool) -> np.ndarray:
    read = scale.read()
    above = read > 0 if ternary else read >= 0
    if not (above & np.isfinite(read)).all():
        raise Problem(
            f"{scale.name} is no scale",
            why="scales are finite and positive; only that of a row of zeros in 8 bits may be 0",
            fix="fetch or convert the model again",
            exit_code=CORRUPT,
        )
    return read


def _read_codes(values: Tensor) -> np.ndarray:
    read = values.read()
    if (read & (read >> 1) & 0x55).any():  # a pair of bits is 3
        raise Problem(
            f"{values.name} is not ternary",
            why="two bits stand for −1, 0 or 1, and some are neither",
            fix="fetch or convert the model again",
            exit_code=CORRUPT,
        )
    return read


def renamed(packed: Packed, name: str) -> Packed:
    """The same under another name."""
    values, scale = replace(packed.values, name=name), replace(packed.scale, name=name + SCALE)
    return replace(packed, values=values, scale=scale)


def _read(packed: Packed) -> np.ndarray:
    scale = packed.scale.read()
    if packed.kind == TERNARY:
        return packed.signs().astype(np.float32) * (np.float32(1) / scale)
    matrix = packed.values.read().reshape(len(scale), -1).astype(np.float32)
    matrix *= scale[:, None]
    return matrix.reshape(packed.shape)


def _rows(shape: tuple[int, ...]) -> int:
    """Rows of a matrix; positions are kept as [1, rows, columns]."""
    return shape[1] if shape[0] == 1 and len(shape) > 2 else shape[0]


def _exact(tensor: Tensor) -> np.ndarray:
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise Problem(
            f"{tensor.name} has values that are NaN or infinite",
            fix="use a sound checkpoint; `jaxmodels inspect` names what is wrong with this one",
            exit_code=MISMATCH,
        )
    return values


def _ternary(tensor: Tensor, note: Callable[[str, float], None]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and 1/γ, as the model rounds."""
    from jaxmodels.bitgen import bitlinear

    exact = _exact(tensor)
    # The model rounds the kernel as it holds it, [in, out].
    signs, gamma = (np.asarray(x) for x in bitlinear.ternary(jnp.asarray(exact.T)))
    note(tensor.name, float(np.abs(exact.T - signs * gamma).max(initial=0)))
    packed = bitlinear.pack_rows(jnp.asarray(signs.T, jnp.int8))
    return np.asarray(packed), np.asarray([reciprocal(gamma)], np.float32)


def reciprocal(gamma: Any) -> np.float32:
    """1/γ whose own reciprocal is γ again, as far as there is one."""
    near = np.float32(1) / np.float32(gamma)
    for each in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        if np.float32(1) / each == gamma:
            return each
    return near


def _int8(tensor: Tensor, note: Callable[[str, float], None]) -> tuple[np.ndarray, np.ndarray]:
    """Values and scales, the largest of each row at ±127."""
    exact = _exact(tensor)
    matrix = exact.reshape(_rows(exact.shape), -1)
    scale = np.abs(matrix).max(axis=1, initial=0) / np.float32(LARGEST)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    rounded = np.clip(np.rint(matrix / divisor), -LARGEST, LARGEST)
    note(tensor.name, float(np.abs(matrix - rounded * scale[:, None]).max(initial=0)))
    return rounded.astype(np.int8).reshape(exact.shape), scale.astype(np.float32)


def value_counts(packed: Packed) -> dict[str, int]:
    """How many of a ternary matrix's weights are −1, 0 and 1."""
    signs = packed.signs()
    return {str(sign): int((signs == sign).sum()) for sign in (-1, 0, 1)}
