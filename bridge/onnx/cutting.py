"""Parts of graphs, and graphs in float64.

A difference in the last bit of a float32 may round an activation to the other of two 8-bit numbers.
What is ternary is therefore compared in float64, from where it begins to where it ends.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.onnx.graph import IR, OPSET


def part(file: Path, inputs: Sequence[str], outputs: Sequence[str], wide: bool = True) -> Any:
    """The model of a file between some of its values.

    Args:
        file: of a graph.
        inputs: values that are given; those that nothing asks for are left out.
        outputs: values that are wanted.
        wide: in float64 instead of float32.
    """
    import onnx
    from onnx import TensorProto, helper

    kind = TensorProto.DOUBLE if wide else TensorProto.FLOAT

    graph = onnx.load(str(file)).graph
    made = {name: node for node in graph.node for name in node.output}
    wanted, needed = list(outputs), set()
    while wanted:
        name = wanted.pop()
        if name in inputs or name in needed or name not in made:
            continue
        needed |= set(made[name].output)
        wanted += made[name].input
    nodes = [node for node in graph.node if node.output[0] in needed]
    held = {tensor.name: tensor for tensor in graph.initializer}
    read = {name for node in nodes for name in node.input}
    integers = {x.name: x for x in graph.input if x.type.tensor_type.elem_type != TensorProto.FLOAT}
    given = [
        integers.get(name) or helper.make_tensor_value_info(name, kind, None)
        for name in sorted(read & {*inputs})
    ]
    found = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    if wide:
        nodes = [new for node in nodes if (new := _wide_node(node, held)) is not None]
    kept = [held[name] for name in sorted({n for node in nodes for n in node.input} & {*held})]
    if wide:
        kept = [_wide_tensor(tensor) for tensor in kept]
    cut = helper.make_graph(nodes, graph.name, given, found, kept)
    version = helper.make_opsetid("", OPSET)
    return helper.make_model(cut, opset_imports=[version], ir_version=IR)


def _wide_node(node: Any, held: dict[str, Any]) -> Any:
    """A node in float64; None for one that becomes a constant in `held`."""
    from onnx import TensorProto, numpy_helper

    if node.op_type == "DequantizeLinear":  # which onnxruntime has in float32 only
        levels, scales = (numpy_helper.to_array(held[name]) for name in node.input)
        axis = next(a.i for a in node.attribute if a.name == "axis")
        values = levels.astype(np.float64) * np.expand_dims(scales.astype(np.float64), 1 - axis)
        held[node.output[0]] = numpy_helper.from_array(values, node.output[0])
        return None
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
    return node


def _wide_tensor(tensor: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
