"""Folders of ONNX graphs for onnxruntime; written, not read.

`bridge/onnx` builds the graphs of each architecture. A folder has the graphs, `weights.bin`, which
they share, config.json, tokenizer.json, generation_config.json (ids that end a text, and ids that
are never drawn) and a model card with the graphs' inputs and outputs.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge.core.tensors import Tensor
from bridge.core.twins import twin, twins
from bridge.formats.format import Format, Output, Quantisation
from bridge.formats.generation import caption_ends, drawing, generation_config
from bridge.formats.raw import RawCheckpoint
from bridge.formats.tokenizer import write_tokenizer
from bridge.onnx.graph import Graph
from bridge.onnx.running import EXACT, Files
from bridge.onnx.weights import FILE, Weights, rounded
from data_pipelines.tokenizers import Tokenizer
from jaxmodels.errors import CORRUPT, USAGE, Problem
from jaxmodels.extras import require
from jaxmodels.runtime.manifest import MANIFEST

_ENDING = ".onnx"
_INT8 = f"""
By default onnxruntime rounds activations to 8 bits where weights are int8. To keep them in float32:

```python
options = onnxruntime.SessionOptions()
options.add_session_config_entry{EXACT}
```
"""


def is_folder(folder: Path) -> bool:
    """Whether `convert` wrote graphs there."""
    return (folder / MANIFEST).is_file() and any(folder.glob(f"*{_ENDING}"))


def open_folder(folder: Path) -> RawCheckpoint:
    """Raises a Problem: weights in graphs are partly merged, rounded or precomputed."""
    raise Problem(
        "ONNX graphs are not read back",
        where=str(folder),
        why="some of their weights are precomputed for onnxruntime",
        fix="give the checkpoint that they were made from; manifest.json in the folder names it",
        exit_code=CORRUPT,
    )


def check(config: Any, where: Path) -> None:
    """Checks that the architecture has ONNX graphs, and that onnx and onnxruntime are installed.

    Raises:
        Problem: (usage) it has none, or a package is missing.
    """
    arch = jaxmodels.package_of(config).name
    if not twin(arch).ONNX:
        known = ", ".join(name for name, side in twins() if side.ONNX)
        raise Problem(
            f"{arch} cannot be exported to ONNX",
            where=str(where),
            why=f"these can: {known}",
            fix="use --to safetensors",
            exit_code=USAGE,
        )
    for package in ("onnx", "onnxruntime"):
        require(package, f"--to {FORMAT.name}")


def notes(config: Any, origin: dict[str, Any], tokenizer: Tokenizer | None) -> list[str]:
    """Notes on how weights that are not float32 are stored."""
    package = jaxmodels.package_of(config)
    if not package.TERNARY:
        return []
    return [
        "ternary weights take 2 bits each in weights.bin, and a byte each in memory: onnxruntime "
        "has no product of fewer bits with 8-bit activations"
    ]


def stays_float32(path: str, tensor: Tensor) -> bool:
    """Whether a parameter (our path) stays float32 when others are int8: all do except the
    matrices of layers and the token embedding."""
    matrix = len(tensor.shape) == 2 and path.endswith(("/kernel", "embed/embedding"))
    return not matrix or path.startswith("memory/")


def write(output: Output) -> None:
    """Writes everything but the tokeniser's own file and the manifest."""
    arch, folder = output.description["arch"], output.folder
    tensors = {name.replace(".", "/"): tensor for name, tensor in output.tensors.items()}
    quantised = frozenset(name.replace(".", "/") for name in output.quantised)
    with (folder / FILE).open("wb") as file:
        weights = Weights(tensors, file, output.read, quantised)
        made = _module(arch).graphs(output.config, weights)
    for name, graph in made.items():
        (folder / name).write_bytes(graph.model().SerializeToString())
    _write(folder / "config.json", output.description)
    tokenizer = output.tokenizer
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer, output.config.context, twin(arch).TOKENIZER)
    known = caption_ends(arch, tokenizer) | drawing(output.origin.get("generation"))
    if generation := generation_config(tokenizer, output.config, known):
        _write(folder / "generation_config.json", generation)
    (folder / "README.md").write_text(_card(output, made), encoding="utf-8")


def run(folder: Path, model: Any) -> float | None:
    """Opens every graph; with a model, returns the largest difference of an output from its own."""
    files = Files(folder)
    for path in sorted(folder.glob(f"*{_ENDING}")):
        files.session(path.name)
    if model is None:
        return None
    arch = jaxmodels.package_of(model).name
    return float(_module(arch).difference(twin(arch), model, files))


def _module(arch: str) -> Any:
    return import_module(twin(arch).ONNX)


def _card(output: Output, graphs: dict[str, Graph]) -> str:
    """README.md: the source, and the graphs' inputs and outputs."""
    arch = output.description["arch"]
    rows = "\n".join(
        f"| `{name}` | {_values(graph.inputs)} | {_values(graph.outputs)} |"
        for name, graph in graphs.items()
    )
    int8 = ", matrices int8 with a scale for each output" if output.quantised else ""
    return (
        f"""---
library_name: onnxruntime
tags: [{arch}, jaxmodels, onnx]
---

# {arch} for onnxruntime

Written by jaxmodels {jaxmodels.__version__}; weights are float32{int8}, in `{FILE}`.

| file | inputs | outputs |
|---|---|---|
{rows}

```python
import onnxruntime
session = onnxruntime.InferenceSession("PATH/{next(iter(graphs))}")
```

{_module(arch).USE}
{_INT8 if output.quantised else ""}""".rstrip()
        + "\n"
    )


def _values(values: list[Any]) -> str:
    """Names, dtypes and shapes of inputs or outputs; of the layers' caches only the first."""
    from onnx import helper

    found = []
    for value in values:
        if any(part.isdecimal() and part != "0" for part in value.name.split(".")):
            continue
        kind = value.type.tensor_type
        axes = (axis.dim_param or str(axis.dim_value) for axis in kind.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        found.append(f"`{value.name}` {dtype} [{', '.join(axes)}]")
    return "<br>".join(found)


def _stored_bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) + 4 * max(shape)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


FORMAT = Format(
    "onnx",
    is_folder=is_folder,
    open_folder=open_folder,
    write=write,
    run=run,
    tables=(),
    file=lambda origin: FILE,
    check=check,
    notes=notes,
    moments=None,
    dtypes=("keep", "float32"),
    stays_float32=stays_float32,
    ternary=True,
    quantisation=Quantisation("int8", lambda shape: len(shape) == 2, rounded, _stored_bytes),
)
