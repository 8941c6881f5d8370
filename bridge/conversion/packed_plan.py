"""Plans what a packed model directory will hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bridge.checkpoint.checkpoint import Checkpoint
from bridge.core import packing, table
from bridge.core.packing import Packed
from bridge.core.tensors import DTYPES, Tensor, cast
from jaxmodels.architecture import Architecture


def pack_all(
    source: Checkpoint, rows: table.Rows
) -> tuple[dict[str, Tensor], dict[str, Packed], dict[str, float]]:
    """Decides how each tensor is stored; reads none.

    What is packed in the source already stays as it is, bit for bit. State keeps its dtype;
    everything else is float32.

    Returns:
        our path → tensor as it will be read back; new name → packed matrix; our path →
        rounding error, filled in while tensors are read.
    """
    ours: dict[str, Tensor] = {}
    packed: dict[str, Packed] = {}
    errors: dict[str, float] = {}
    for pair in table.pairs(rows, source.tensors):
        tensor = source.tensors[pair.ours]

        def note(_: str, error: float, path: str = pair.ours) -> None:
            errors[path] = error

        kind = packing.kind_of(source.arch, pair.ours)
        if pair.ours in source.packed:
            packed[pair.theirs] = packing.renamed(source.packed[pair.ours], pair.theirs)
            ours[pair.ours] = tensor
        elif kind is not None:
            packed[pair.theirs] = packing.pack(pair.export(tensor), kind, note)
            ours[pair.ours] = pair.load(packed[pair.theirs].unpacked(), tensor.shape)
        elif pair.ours in source.state:
            ours[pair.ours] = tensor
        else:
            ours[pair.ours] = cast(tensor, DTYPES["F32"], note)
    return ours, packed, errors


def stored(tensors: dict[str, Tensor], packed: dict[str, Packed]) -> list[Tensor]:
    """The tensors of the files: the parts of each packed matrix in place of the matrix."""
    parts = (packed[n].parts if n in packed else (tensor,) for n, tensor in tensors.items())
    return [tensor for held in parts for tensor in held]


def packed_in(
    package: Architecture, rest: Mapping[str, Any], shapes: Mapping[str, table.Shape]
) -> dict[str, tuple[table.Pair, Packed]]:
    """Our path → (name in the files, packed matrix) of a compressed model.

    Args:
        package: of the model.
        rest: path → array of everything that is no parameter of the model.
        shapes: our path → shape of the parameters that the model lacks as such.
    """
    found = {}
    for pair in table.pairs(package.WEIGHTS, shapes):
        scale: np.ndarray
        layer, shape = pair.ours.rpartition("/")[0], pair.their_shape(shapes[pair.ours])
        if f"{layer}/packed" in rest and packing.kind_of(package.name, pair.ours) is not None:
            values = _tensor(pair.theirs, rest[f"{layer}/packed"])
            gamma = np.asarray(rest[f"{layer}/scale"], np.float32)
            scale, kind = packing.reciprocal(gamma).reshape(1), packing.TERNARY
        elif f"{pair.ours}/values" in rest:
            values = pair.export(_tensor(pair.ours, rest[f"{pair.ours}/values"]))
            scale = np.asarray(rest[f"{pair.ours}/scale"], np.float32).reshape(-1)
            kind = packing.INT8
        else:
            continue
        held = _tensor(pair.theirs + packing.SCALE, scale)
        found[pair.ours] = pair, Packed(kind, shape, values, held)
    return found


def _tensor(name: str, array: Any) -> Tensor:
    return Tensor(name, array.shape, np.dtype(array.dtype), lambda: np.asarray(array))
