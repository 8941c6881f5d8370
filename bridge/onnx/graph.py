"""Builds an ONNX graph as numpy code reads: values have operators, and `op` calls any other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OPSET, IR = 20, 9
"""What onnxruntime 1.17 (2024) and later run."""
_RESULTS_OF_COMPARING = {"LessOrEqual", "Equal", "And", "Or", "Not", "Greater", "Less"}
Number = float | int


@dataclass(frozen=True)
class Value:
    """What a node gives: its name in the graph and its dtype."""

    graph: "Graph"
    name: str
    dtype: Any

    def __add__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Number) -> "Value":
        return self + other

    def __sub__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Number) -> "Value":
        return self * other

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Div", self, other)

    def __rtruediv__(self, other: Number) -> "Value":
        return self.graph.op("Div", other, self)

    def __neg__(self) -> "Value":
        return self.graph.op("Neg", self)

    def __matmul__(self, other: "Value") -> "Value":
        return self.graph.op("MatMul", self, other)

    def cast(self, dtype: Any) -> "Value":
        """In another dtype."""
        to = self.graph.code(dtype)
        return self.graph.op("Cast", self, to=to, dtype=np.dtype(dtype))

    def size(self, axis: int) -> "Value":
        """The size of an axis, int64 [1]."""
        return self.graph.op("Shape", self, start=axis, end=axis + 1, dtype=np.dtype(np.int64))

    def reshape(self, *shape: "int | Value") -> "Value":
        """In another shape; 0 keeps the size of that axis."""
        return self.graph.op("Reshape", self, self.graph.shape(*shape))

    def transpose(self, *axes: int) -> "Value":
        """With its axes in another order."""
        return self.graph.op("Transpose", self, perm=list(axes))

    def unsqueeze(self, *axes: int) -> "Value":
        """With axes of size 1."""
        return self.graph.op("Unsqueeze", self, self.graph.constant(axes, np.int64))

    def take(self, indices: "Value | Number", axis: int = 0) -> "Value":
        """The elements at these indices of an axis."""
        if not isinstance(indices, Value):
            indices = self.graph.constant(indices, np.int64)
        return self.graph.op("Gather", self, indices, axis=axis)

    def slice(self, axis: int, start: "int | Value", end: "int | Value") -> "Value":
        """From start to end of an axis."""
        constant = self.graph.constant
        ends = [x if isinstance(x, Value) else constant([x], np.int64) for x in (start, end)]
        return self.graph.op("Slice", self, *ends, constant([axis], np.int64))

    def split(self, parts: int, axis: int = -1) -> list["Value"]:
        """In equal parts."""
        return self.graph.ops("Split", self, count=parts, axis=axis, num_outputs=parts)

    def mean(self, axis: int = -1) -> "Value":
        """The mean over an axis, which keeps size 1."""
        return self.graph.op("ReduceMean", self, self.graph.constant([axis], np.int64), keepdims=1)

    def sum(self, axis: int = -1) -> "Value":
        """The sum over an axis, which keeps size 1."""
        return self.graph.op("ReduceSum", self, self.graph.constant([axis], np.int64), keepdims=1)

    def max(self, axis: int = -1) -> "Value":
        """The maximum over an axis, which keeps size 1."""
        return self.graph.op("ReduceMax", self, self.graph.constant([axis], np.int64), keepdims=1)


@dataclass
class Graph:
    """One file in the making."""

    name: str
    weights: Any
    """A `bridge.onnx.weights.Weights`: the parameters, and the file that holds them."""
    nodes: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)
    """Name → TensorProto of constants and weights."""

    def input(self, name: str, dtype: Any, *shape: str | int) -> Value:
        """An input; names of axes are sizes that may change from call to call."""
        from onnx import helper

        self.inputs.append(helper.make_tensor_value_info(name, self.code(dtype), shape))
        return Value(self, name, np.dtype(dtype))

    def output(self, name: str, value: Value, *shape: str | int) -> None:
        """An output."""
        from onnx import helper

        self.op("Identity", value, out=name)
        self.outputs.append(helper.make_tensor_value_info(name, self.code(value.dtype), shape))

    def op(self, kind: str, *inputs: Any, dtype: Any = None, out: str = "", **attributes) -> Value:
        """Calls an operator of ONNX.

        Args:
            kind: its name.
            inputs: values; a number becomes a constant of the first input's dtype.
            dtype: of the result; by default bool for comparisons, else the first input's.
            out: the result's name, if it matters.
            attributes: the operator's.
        """
        return self._node(kind, inputs, [out or f"{kind}_{len(self.nodes)}"], dtype, attributes)[0]

    def ops(self, kind: str, *inputs: Any, count: int, **attributes) -> list[Value]:
        """As `op`, with several results of one dtype."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(count)]
        return self._node(kind, inputs, names, None, attributes)

    def _node(
        self, kind: str, inputs: Any, names: list[str], dtype: Any, attributes: dict[str, Any]
    ) -> list[Value]:
        from onnx import helper

        of = next(x.dtype for x in inputs if isinstance(x, Value))
        given = [x if isinstance(x, Value) else self.constant(x, of) for x in inputs]
        node = helper.make_node(kind, [x.name for x in given], names, **attributes)
        self.nodes.append(node)
        if dtype is None:
            dtype = np.dtype(bool) if kind in _RESULTS_OF_COMPARING else of
        return [Value(self, name, dtype) for name in names]

    def constant(self, value: Any, dtype: Any) -> Value:
        """A constant, held once."""
        from onnx import numpy_helper

        array = np.asarray(value, dtype)
        name = f"{array.dtype}{list(array.shape)}_{array.tobytes().hex()}"
        if len(name) > 60:
            name = f"constant_{len(self.held)}"
        if name not in self.held:
            self.held[name] = numpy_helper.from_array(array, name)
        return Value(self, name, array.dtype)

    def weight(self, path: str) -> Value:
        """A parameter as float32, by our path."""
        return self._held(self.weights.plain(path))

    def derived(self, name: str, make: Callable[[], np.ndarray]) -> Value:
        """A tensor that is computed from parameters now, held once in all graphs."""
        return self._held(self.weights.derived(name, make))

    def _held(self, tensor: Any) -> Value:
        from onnx import helper

        self.held[tensor.name] = tensor
        return Value(self, tensor.name, helper.tensor_dtype_to_np_dtype(tensor.data_type))

    def has(self, path: str) -> bool:
        """Whether the model has this parameter."""
        return self.weights.has(path)

    def shape(self, *sizes: int | Value) -> Value:
        """Sizes as int64 [n]."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(sizes, np.int64)
        parts = [x if isinstance(x, Value) else self.constant([x], np.int64) for x in sizes]
        return self.op("Concat", *parts, axis=0)

    def range(self, start: "int | Value", end: Value) -> Value:
        """int64 from start to end, each a number or int64 [1]."""
        ends = [self.op("Squeeze", x) if isinstance(x, Value) else x for x in (start, end)]
        if not isinstance(ends[0], Value):
            ends[0] = self.constant(ends[0], np.int64)
        return self.op("Range", *ends, self.constant(1, np.int64))

    def concat(self, *values: Value, axis: int) -> Value:
        """One after the other along an axis."""
        return self.op("Concat", *values, axis=axis)

    def where(self, condition: Value, yes: "Value | Number", no: "Value | Number") -> Value:
        """One or the other."""
        of = next(x.dtype for x in (yes, no) if isinstance(x, Value))
        yes, no = (x if isinstance(x, Value) else self.constant(x, of) for x in (yes, no))
        return self.op("Where", condition, yes, no, dtype=of)

    @staticmethod
    def code(dtype: Any) -> int:
        """ONNX's number of a dtype."""
        from onnx import helper

        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def model(self) -> Any:
        """The `onnx.ModelProto`."""
        from onnx import helper

        used = {name for node in self.nodes for name in node.input}
        held = [tensor for name, tensor in self.held.items() if name in used]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, held)
        version = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, opset_imports=[version], ir_version=IR, producer_name="jaxmodels"
        )
