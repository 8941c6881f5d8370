"""What a conversion will write: which tensor goes where, under which name, as what."""

from dataclasses import dataclass
from typing import Any

import jaxmodels
from bridge import table
from bridge.safetensors_writer import plan_shards
from bridge.sources import Source, own_rows
from bridge.tensors import DTYPES, Tensor, cast, kept_in_float32
from bridge.zeros import filled

ZEROS = "zeros"  # stands where a tensor comes from that no file holds


@dataclass(frozen=True)
class Plan:
    """What a conversion will write."""

    rows: list[dict[str, Any]]
    """For each tensor: from, to, op, dtype, shape, shard, bytes."""
    shards: dict[str, list[Tensor]]
    """File → tensors under their new names, unread."""
    ours: dict[str, Tensor]
    """Our path → tensor in its new dtype, unread."""
    errors: dict[str, float]
    """Our path → rounding error; filled while tensors are read."""

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(row["bytes"] for row in self.rows)


def make_plan(
    source: Source, to: str, dtype: Any, keep_fp32: tuple[str, ...], max_shard: int
) -> Plan:
    """Which tensor goes where, as what; nothing is read."""
    errors: dict[str, float] = {}
    ours = {}
    for path, tensor in source.tensors.items():
        kept = dtype is not None and kept_in_float32(path, keep_fp32)
        wanted = DTYPES["F32"] if kept else dtype or tensor.dtype
        ours[path] = cast(tensor, wanted, errors.__setitem__)
    whole = filled(source.arch, source.config, ours) if to == "safetensors" else ours
    pairs = table.pairs(_rows(source, to), whole)
    out = {pair.ours: pair.export(whole[pair.ours]) for pair in pairs}
    tensors = list(out.values())
    shards = plan_shards(tensors, max_shard) if to == "safetensors" else {"": tensors}
    shard_of = {tensor.name: name for name, held in shards.items() for tensor in held}
    steps_in = {pair.ours: pair for pair in source.pairs}
    rows = [
        {
            "from": steps_in[pair.ours].theirs if pair.ours in ours else ZEROS,
            "to": pair.theirs,
            "op": _op(steps_in[pair.ours].op, pair.op) if pair.ours in ours else "same",
            "dtype": str(out[pair.ours].dtype),
            "shape": list(out[pair.ours].shape),
            "shard": shard_of[pair.theirs],
            "bytes": out[pair.ours].nbytes,
        }
        for pair in pairs
    ]
    return Plan(rows, shards, ours, errors)


def _rows(source: Source, to: str) -> table.Rows:
    package = jaxmodels.arch(source.arch)
    if to == "safetensors":
        return package.WEIGHTS
    return getattr(package, "SEED", None) or own_rows(package)


def _op(inward: str, outward: str) -> str:
    """What happens to a tensor on the whole way; an op and its inverse cancel."""
    steps = [] if inward == outward else [op for op in (inward, outward) if op != "same"]
    return ", ".join(steps) or "same"
