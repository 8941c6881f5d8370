"""What a conversion will write: which tensor goes where, under which name, as what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jaxmodels
from bridge import parts, table
from bridge.formats import bitgen, bwetaf, dinov2_pth, nanogpt, wigip
from bridge.matching import own_rows
from bridge.moments import Moments
from bridge.safetensors_writer import plan_shards
from bridge.sources import Source
from bridge.table import Pair
from bridge.tensors import DTYPES, Tensor, cast, kept_in_float32
from bridge.zeros import filled

# Targets that PyTorch opens: safetensors in PyTorch's names and layouts.
PYTORCH = ("safetensors", "gpt2", "dinov2")
# The one file of tensors of the others; Orbax has many.
_FILES: dict[str, Callable[[dict[str, Any]], str]] = {
    "nanogpt": lambda _: nanogpt.FILE,
    "bwetaf": lambda _: bwetaf.WEIGHTS_FILE,
    "wigip-zip": wigip.file_name,
    "bitgen": bitgen.file_name,
    "dinov2-pth": lambda _: dinov2_pth.FILE,
    "orbax": lambda _: "",
}


@dataclass(frozen=True)
class Plan:
    """What a conversion will write."""

    rows: list[dict[str, Any]]
    """For each tensor: from, to, op, dtype, shape, shard, bytes."""
    shards: dict[str, list[Tensor]]
    """File ("" for Orbax, which has many) → tensors under their new names, unread."""
    ours: dict[str, Tensor]
    """Our path → tensor in its new dtype, unread."""
    errors: dict[str, float]
    """Our path → rounding error; filled while tensors are read."""
    pairs: list[Pair]
    """The map between our paths and the names of the target."""
    zeros: int
    """How many tensors of zeros are added, because the target cannot be without."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """New name → tensor, unread."""
        return {tensor.name: tensor for held in self.shards.values() for tensor in held}

    def named(self, moments: Moments) -> Moments:
        """AdamW's state under the target's names and in its layout; float32 as it is."""
        return moments.mapped(
            lambda held: parts.join(
                {p.theirs: p.export(held[p.ours]) for p in self.pairs if p.ours in held}
            )
        )

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
        if path in source.state:
            wanted = tensor.dtype
        else:
            wanted = DTYPES["F32"] if kept else dtype or tensor.dtype
        ours[path] = cast(tensor, wanted, errors.__setitem__)
    target = _rows(source, to)
    whole = filled(source.arch, source.config, ours) if to in PYTORCH else ours
    pairs = table.pairs(target, whole)
    out = {pair.theirs: pair.export(whole[pair.ours]) for pair in pairs}
    tensors = list(parts.join({n: out[n] for n in table.in_order(target, out)}).values())
    shards = (
        plan_shards(tensors, max_shard) if to in PYTORCH else {_FILES[to](source.origin): tensors}
    )
    shard_of = {tensor.name: name for name, held in shards.items() for tensor in held}
    new = {True: "a new model's", False: "zeros"}
    steps_in = {pair.ours: pair for pair in source.pairs}
    rows = [
        {
            "from": steps_in[pair.ours].theirs if pair.ours in steps_in else new[pair.ours in ours],
            "to": pair.theirs,
            "op": _op(steps_in[pair.ours].op if pair.ours in steps_in else "same", pair.op),
            "dtype": str(out[pair.theirs].dtype),
            "shape": list(out[pair.theirs].shape),
            "shard": shard_of[parts.whole(pair.theirs)],
            "bytes": out[pair.theirs].nbytes,
        }
        for pair in pairs
    ]
    real = [pair for pair in pairs if pair.ours in ours]
    return Plan(rows, shards, ours, errors, real, len(pairs) - len(real))


def _rows(source: Source, to: str) -> table.Rows:
    package = jaxmodels.arch(source.arch)
    if to in PYTORCH:
        rows: table.Rows = getattr(package, "SAVED", package.WEIGHTS)
        return rows
    return getattr(package, "SEED", None) or own_rows(package)


def _op(inward: str, outward: str) -> str:
    """What happens to a tensor on the whole way; an op and its inverse cancel."""
    steps = [] if inward == outward else [op for op in (inward, outward) if op != "same"]
    return ", ".join(steps) or "same"
