"""ONNX graphs of our models, for onnxruntime: a module here says how an architecture computes.

The graphs are built operator by operator from our own parameters, not traced from PyTorch: names,
dynamic sizes and quantised weights are then what we say, and nothing but `onnx` is needed. An
architecture joins by `ONNX` of its twin (`bridge/core/twins.py`), the name of a module with

- `graphs(config, weights) -> dict[str, Graph]`: file name → graph
- `USE`: how they are used, for the model card
- `difference(twin, model, files) -> float`: the largest difference of any output that onnxruntime
  computes from our model's; `files` are a `running.Files`
"""
