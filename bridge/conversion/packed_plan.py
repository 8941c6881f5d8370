"""What a packed model directory will hold."""

from bridge.checkpoint.checkpoint import Checkpoint
from bridge.core import packing, table
from bridge.core.packing import Packed
from bridge.core.tensors import DTYPES, Tensor, cast


def pack_all(
    source: Checkpoint, rows: table.Rows
) -> tuple[dict[str, Tensor], dict[str, Packed], dict[str, float]]:
    """Decides what becomes of each tensor; nothing is read.

    What is packed in the source already stays as it is, bit for bit. State keeps its dtype, and
    all else is float32.

    Returns:
        our path → tensor as it will be read again; new name → matrix in few bits; our path →
        rounding error, filled while tensors are read.
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
    """The tensors of the files: the parts of what is packed, in the place of the matrices."""
    parts = (packed[n].parts if n in packed else (tensor,) for n, tensor in tensors.items())
    return [tensor for held in parts for tensor in held]
