"""Runs the graphs of a folder by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np

# Products with int8 weights by float32 activations, as our model has them. onnxruntime's default
# rounds the activations to 8 bits, too.
EXACT = ("session.qdq_matmulnbits_accuracy_level", "1")


class Files:
    """The graphs of a folder, each opened when it is first run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Any] = {}

    def session(self, name: str, model: Any = None) -> Any:
        """The `InferenceSession` of a file, or of a model under a name of its own."""
        if name not in self._open:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry(*EXACT)
            given = str(self.folder / name)
            if model is not None:
                given = model.SerializeToString()
                # Its fused operators are not all there in float64.
                options.graph_optimization_level = (
                    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                )
            self._open[name] = onnxruntime.InferenceSession(
                given, options, providers=["CPUExecutionProvider"]
            )
        return self._open[name]

    def run(self, name: str, given: dict[str, np.ndarray], model: Any = None) -> dict[str, Any]:
        """The outputs of a graph by their names."""
        session = self.session(name, model)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))
