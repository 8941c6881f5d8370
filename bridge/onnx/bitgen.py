"""bitgen for onnxruntime: its graphs, and their comparison with our model."""

from bridge.onnx import bitgen_check, bitgen_graphs

graphs, USE, difference = bitgen_graphs.graphs, bitgen_graphs.USE, bitgen_check.difference
