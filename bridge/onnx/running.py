"""Runs the graphs of a folder by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.errors import USAGE, Problem


class Files:
    """The graphs of a folder, each opened when it is first run."""

    def __init__(self, folder: Path):
        self.folder, self._open = folder, {}

    def session(self, name: str, model: Any = None) -> Any:
        """The `InferenceSession` of a file, or of a model under a name of its own."""
        if name not in self._open:
            runtime = libraries()[1]
            options = runtime.SessionOptions()
            options.log_severity_level = 3
            given = str(self.folder / name)
            if model is not None:
                given = model.SerializeToString()
                # Its fused operators are not all there in float64.
                options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            self._open[name] = runtime.InferenceSession(
                given, options, providers=["CPUExecutionProvider"]
            )
        return self._open[name]

    def run(self, name: str, given: dict[str, np.ndarray], model: Any = None) -> dict[str, Any]:
        """The outputs of a graph by their names."""
        session = self.session(name, model)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))


def libraries() -> tuple[Any, Any]:
    """The packages `onnx` and `onnxruntime`.

    Raises:
        Problem: (usage) one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise Problem(
            "ONNX graphs are written with onnx and checked with onnxruntime; one is missing",
            why=str(error),
            fix="pip install 'jaxmodels[onnx]'",
            exit_code=USAGE,
        ) from None
    return onnx, onnxruntime
