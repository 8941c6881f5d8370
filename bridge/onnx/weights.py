"""The parameters of a model in one file beside its graphs, which point into it.

A weight that several graphs use is there once, and onnxruntime maps the file into memory. Weights
are read, converted and written one after the other, when a graph first asks for them.
"""

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from bridge.core.tensors import DTYPES, Tensor, cast, raw

FILE = "weights.bin"
_ALIGNMENT = 64  # of each tensor in the file, as memory mapping likes it
_INLINE = 256  # smaller tensors are in the graphs
LEVELS = 127


class Weights:
    """A model's tensors, and where in the file those are that were asked for."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        file: BinaryIO,
        read: Callable[[Tensor], np.ndarray],
        quantised: frozenset[str] = frozenset(),
    ):
        self._tensors, self._file, self._read, self.quantised = tensors, file, read, quantised
        self._written: dict[str, Any] = {}

    def has(self, path: str) -> bool:
        """Whether the model has this parameter."""
        return path in self._tensors

    def shape(self, path: str) -> tuple[int, ...]:
        """Of a parameter, in our layout."""
        return self._tensors[path].shape

    def values(self, path: str) -> np.ndarray:
        """A parameter's values, float32."""
        tensor = self._tensors[path]
        return self._read(tensor).astype(np.float32, copy=False)

    def plain(self, path: str) -> Any:
        """The `TensorProto` of a parameter as float32."""
        return self.derived(path, lambda: self.values(path))

    def derived(self, name: str, make: Callable[[], np.ndarray]) -> Any:
        """The `TensorProto` of what `make` computes, the first time that it is asked for."""
        if name not in self._written:
            self._written[name] = self._written_tensor(name, np.ascontiguousarray(make()))
        return self._written[name]

    def _written_tensor(self, name: str, array: np.ndarray) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        if array.nbytes < _INLINE:
            return numpy_helper.from_array(array, name)
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        place = {"location": FILE, "offset": self._file.tell(), "length": array.nbytes}
        self._file.write(raw(array).data)
        tensor = TensorProto(
            name=name,
            data_type=int(helper.np_dtype_to_tensor_dtype(array.dtype)),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def rounded_rows(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as int8 and a float32 scale for each index of an axis: values ≈ int8 · scale."""
    most = np.abs(values).max(axis=1 - axis, initial=0.0)
    scale = (most / LEVELS).astype(np.float32)
    divisor = np.expand_dims(np.where(scale > 0, scale, 1), 1 - axis)
    return np.rint(values / divisor).astype(np.int8), scale


def axis_of_scales(path: str) -> int:
    """The axis with a scale for each index: tokens of an embedding, outputs of a kernel."""
    return 0 if path.endswith("embedding") else 1


def rounded(tensor: Tensor, report: Callable[[str, float], None]) -> Tensor:
    """A matrix as int8 keeps it: float32, unread; `report` gets its name and rounding error."""
    exact = cast(tensor, DTYPES["F32"])

    def read() -> np.ndarray:
        values = exact.read()
        axis = axis_of_scales(tensor.name)
        levels, scale = rounded_rows(values, axis)
        kept = levels.astype(np.float32) * np.expand_dims(scale, 1 - axis)
        report(tensor.name, float(np.abs(kept - values).max(initial=0.0)))
        return kept

    return (
        Tensor(tensor.name, tensor.shape, DTYPES["F32"], read) if len(tensor.shape) == 2 else exact
    )
