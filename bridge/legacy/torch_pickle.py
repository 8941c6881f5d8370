"""The tensors in what `torch.save` pickled, read without torch; see `torch_file`, `old_torch_file`.

A tensor is a call of one of torch's functions with a storage, which the pickle names by a key, and
the place in it. Source: torch's `_utils.py`, `_tensor.py` and `serialization.py`, 0.4 to 2.13.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from bridge.core.tensors import DTYPES, Tensor
from bridge.legacy import harmless
from bridge.legacy.array_pickle import Array
from bridge.legacy.instructions import BrokenPickle, PickleStream
from bridge.legacy.unpickle import read_pickle
from bridge.legacy.values import Named, Record, brief, natural

MAX_PICKLE = 50_000_000  # bytes; the largest seen are a few million
MAX_DIMS = 32
EXPANDED = 2**20  # numbers that a smaller storage may stand for

_STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}
STORAGES = {f"torch.{name}Storage": DTYPES[code] for name, code in _STORAGES.items()}
# Storages of numbers that are not read → bytes of one.
OTHER_STORAGES = {
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QInt32Storage": 4,
}
# Storages of bytes, whose tensors say their dtype.
UNTYPED = {"torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage"}
_DTYPES = {
    f"torch.{name}": DTYPES[code]
    for name, code in (
        *(("float64", "F64"), ("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")),
        *((f"{sign}int{bits}", f"{code}{bits}") for sign, code in (("", "I"), ("u", "U"))
          for bits in (64, 32, 16, 8)),
        ("bool", "BOOL"),
    )
}  # fmt: skip
# Classes of tensors that are nothing but tensors.
_PLAIN = {
    f"torch.{name}"
    for name in ("Tensor", "_tensor.Tensor", "nn.parameter.Parameter", "nn.parameter.Buffer")
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers in a file."""

    kind: str
    """torch's name of its class."""
    width: int
    """Bytes of a number."""
    size: int
    """How many numbers."""
    read: Callable[[int, int], np.ndarray] = field(repr=False)
    """Reads the bytes (uint8 [n]) from one place to another."""
    swapped: bool = False
    """Whether the numbers are big-endian."""

    @classmethod
    def named(
        cls, kind: str, size: int, read: Callable[[int, int], np.ndarray], swapped: bool = False
    ) -> "Storage":
        """A storage by the name of its class; raises BrokenPickle where that is unknown."""
        if kind not in STORAGES and kind not in OTHER_STORAGES and kind not in UNTYPED:
            raise BrokenPickle(f"a storage of the class {kind[:80]}")
        width = STORAGES[kind].itemsize if kind in STORAGES else OTHER_STORAGES.get(kind, 1)
        return cls(kind, width, size, read, swapped)


def read_tensors(
    data: bytes | PickleStream, where: str, storage: Callable[[Any], Any] | None = None
) -> Any:
    """What a pickle of `torch.save` describes: plain values, a `Tensor` (unread) for each tensor.

    Args:
        data: the pickle.
        where: the file, for messages.
        storage: the `Storage` of a persistent id, or what else it stands for.

    Raises:
        Problem: (unsafe) it reaches for code.
        BrokenPickle: it is no such pickle.
    """
    return read_pickle(data, where, _CALLS, (), storage, harmless.Harmless())


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    bits: Any = None,
) -> Any:
    """torch's `_rebuild_tensor_v2`, and `_rebuild_tensor` of before: each argument is checked.

    A tensor of what is not known, or of numbers that are not read, becomes the name of that.
    """
    if isinstance(storage, Named | Record):
        return Record(storage.name, ())
    if not isinstance(storage, Storage):
        raise BrokenPickle("a tensor without a storage")
    dtype = STORAGES.get(storage.kind)
    return _placed(storage, dtype or Named(storage.kind), offset, shape, stride, bits)


def _tensor_with_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    bits: Any = None,
) -> Any:
    """torch's `_rebuild_tensor_v3`: of bytes, in a dtype that no class of storages stands for."""
    if isinstance(storage, Named | Record) or not isinstance(dtype, Named):
        return Record(getattr(storage, "name", "torch._utils._rebuild_tensor_v3"), ())
    if not isinstance(storage, Storage) or storage.kind not in UNTYPED:
        raise BrokenPickle("a tensor without a storage of bytes")
    known = _DTYPES.get(dtype.name)
    if known is not None:
        width = known.itemsize
        storage = replace(storage, width=width, size=storage.size // width)
    return _placed(storage, known or dtype, offset, shape, stride, bits)


def _placed(
    storage: Storage, dtype: np.dtype | Named, offset: Any, shape: Any, stride: Any, bits: Any
) -> Any:
    if not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise BrokenPickle("a tensor without shape or strides")
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or len(shape) > MAX_DIMS or not all(map(natural, numbers)):
        raise BrokenPickle(f"a tensor of shape {brief(shape)}, strides {brief(stride)}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    count = prod(shape)
    if isinstance(dtype, Named):
        return Record(dtype.name, ())
    # One number may stand for many (`expand`), but not for more than anybody would read.
    if count and (last >= storage.size or count > max(storage.size, EXPANDED)):
        raise BrokenPickle(f"a tensor of shape {shape} reaches beyond its {storage.size:,}")
    # Flags of how to read the numbers in the storage; the only one of real numbers is negation.
    flags = {key for key, value in bits.items() if value} if isinstance(bits, dict) else {bits}
    if unknown := flags - {"neg", None}:
        return Record(f"torch._utils._rebuild_tensor_v2 with {brief(min(unknown, key=str))}", ())
    read = partial(_values, storage, dtype, offset, shape, stride, "neg" in flags)
    return Tensor("", shape, dtype, read)


def _values(
    storage: Storage,
    dtype: np.dtype,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    negated: bool,
) -> np.ndarray:
    if not prod(shape):
        return np.empty(shape, dtype)
    width = dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    flat = storage.read(offset * width, (last + 1) * width)
    if storage.swapped:
        flat = flat.view(f"u{width}").byteswap().view(np.uint8)
    flat = flat.view(dtype)
    steps = tuple(step * width for step in stride)
    values = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
    return np.negative(values) if negated else values


def _parameter(tensor: Any, *_: Any) -> Any:
    """torch's `_rebuild_parameter`, with and without a state."""
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """torch's `_rebuild_from_type_v2`: a tensor of a class of its own, or with attributes."""
    if not isinstance(kind, Named | Record):
        raise BrokenPickle(f"a tensor of the class {brief(kind)}")
    if kind.name not in _PLAIN or not isinstance(function, Named) or function.name not in _MAKING:
        return Record(kind.name if kind.name not in _PLAIN else brief(function), ())
    return _MAKING[function.name](*arguments)


def _elsewhere(values: Any, kind: Any, *_: Any) -> Any:
    """torch's `_rebuild_device_tensor_…`: a tensor of a device whose storages are not saved."""
    tensor = values.tensor("") if isinstance(values, Array) and values.dtype else values
    if not isinstance(tensor, Tensor):
        return Record(getattr(values, "name", "torch._utils._rebuild_device_tensor"), ())
    dtype = _DTYPES.get(kind.name) if isinstance(kind, Named) else None
    if dtype is None:
        return Record(getattr(kind, "name", "torch._utils._rebuild_device_tensor"), ())
    return Tensor("", tensor.shape, dtype, lambda: tensor.read().astype(dtype))


def _size(*numbers: Any) -> tuple[Any, ...]:
    return tuple(*numbers)


def _device(*names: Any) -> str:
    return ":".join(str(name) for name in names if isinstance(name, str | int))


# Of torch._utils, the functions that make tensors.
_REBUILDING: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_with_dtype,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_xla_tensor": _elsewhere,
    "_rebuild_device_tensor_from_numpy": _elsewhere,
    "_rebuild_device_tensor_from_cpu_tensor": _elsewhere,
}
_MAKING = {f"torch._utils.{name}": call for name, call in _REBUILDING.items()}
_CALLS = {
    **harmless.CALLS,
    **_MAKING,
    **{f"torch.{where}._rebuild_from_type_v2": _of_type for where in ("_utils", "_tensor")},
    "torch.Size": _size,
    "torch.device": _device,
}
