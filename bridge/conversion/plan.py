"""What a conversion will write: which tensor goes where, under which name, as what."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jaxmodels
from bridge.checkpoint.opening import Checkpoint
from bridge.checkpoint.zeros import filled
from bridge.core import fused_tensors, table
from bridge.core.layouts import own_rows
from bridge.core.moments import Moments
from bridge.core.table import Pair
from bridge.core.tensors import DTYPES, NO_LIST, Tensor, cast, is_float, kept_in_float32
from bridge.formats import bitgen, bwetaf, dinov2_pth, gguf, nanogpt, wigip
from bridge.storage.gguf_reader import Q8_0, stored_bytes
from bridge.storage.safetensors_writer import plan_shards
from jaxmodels.runtime.paths import pattern

# Targets that PyTorch opens: safetensors in PyTorch's names and layouts.
PYTORCH = ("safetensors", "gpt2", "dinov2")
# Targets whose readers know wikigpt with biases only; see bridge/checkpoint/zeros.py.
FILLED = (*PYTORCH, "gguf")
# The one file of tensors of the others; Orbax has many.
_FILES: dict[str, Callable[[dict[str, Any]], str]] = {
    "nanogpt": lambda _: nanogpt.FILE,
    "bwetaf": lambda _: bwetaf.WEIGHTS_FILE,
    "wigip-zip": wigip.file_name,
    "bitgen": bitgen.file_name,
    "dinov2-pth": lambda _: dinov2_pth.FILE,
    "gguf": lambda _: gguf.FILE,
    "orbax": lambda _: "",
}
# Their tables, the first that a package has; the others' is SEED.
_TABLES = {
    "safetensors": ("SAVED", "WEIGHTS"),
    "gpt2": ("WEIGHTS",),
    "dinov2": ("SAVED",),
    "gguf": ("GGUF",),
}


_OF_LATENT = (
    "{} matrices of ternary layers stay float32: rounded to less, a few of their ternary values "
    "would be others; --keep-fp32 none rounds them all the same"
)
_LIBRARIES = 300_000_000  # bytes that the process takes before it reads a tensor


@dataclass(frozen=True)
class ConversionPlan:
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
    quantised: frozenset[str]
    """New names of those that are written as Q8_0."""
    notes: list[str]
    """What is to be said of it."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """New name → tensor, unread."""
        return {tensor.name: tensor for held in self.shards.values() for tensor in held}

    def named(self, moments: Moments) -> Moments:
        """AdamW's state under the target's names and in its layout; float32 as it is."""
        return moments.mapped(
            lambda held: fused_tensors.join(
                {p.theirs: p.export(held[p.ours]) for p in self.pairs if p.ours in held}
            )
        )

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(row["bytes"] for row in self.rows)

    @property
    def memory(self) -> int:
        """About how many bytes of memory writing takes: one tensor is held at a time."""
        return _LIBRARIES + max((row["bytes"] for row in self.rows), default=0)


def make_plan(
    source: Checkpoint, to: str, dtype: Any, keep_fp32: tuple[str, ...], max_shard: int
) -> ConversionPlan:
    """Which tensor goes where, as what; nothing is read.

    `dtype` is that of floating-point tensors, `gguf.QUANTISED`, or None for their own.
    """
    errors: dict[str, float] = {}
    target = _rows(source, to)
    ours, quantised = {}, set()
    places = table.pairs(target, source.tensors)
    stay = {  # as wholes: the parts of one tensor have one dtype
        fused_tensors.whole(pair.theirs)
        for pair in places
        if _stays(pair.ours, source.tensors[pair.ours], to, dtype, keep_fp32)
    }
    latent = {
        fused_tensors.whole(pair.theirs)
        for pair in places
        if dtype is not None and _is_latent(source, pair.ours, keep_fp32)
    }
    stay |= latent
    for pair in places:
        tensor = source.tensors[pair.ours]
        exact = DTYPES["F32"] if fused_tensors.whole(pair.theirs) in stay else None
        if pair.ours in source.state:
            exact = tensor.dtype
        told = partial(_tell, errors, pair.ours)
        if dtype == gguf.QUANTISED and exact is None:
            theirs = gguf.rounded(pair.export(tensor), told)
            ours[pair.ours] = pair.load(theirs, tensor.shape)
            quantised |= {pair.theirs} if gguf.can_quantise(theirs.shape) else set()
        else:
            ours[pair.ours] = cast(tensor, exact or dtype or tensor.dtype, told)
    whole = filled(source.arch, source.config, ours) if to in FILLED else ours
    pairs = table.pairs(target, whole)
    out = {pair.theirs: pair.export(whole[pair.ours]) for pair in pairs}
    tensors = list(fused_tensors.join({n: out[n] for n in table.in_order(target, out)}).values())
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
            "dtype": gguf.QUANTISED if pair.theirs in quantised else str(out[pair.theirs].dtype),
            "shape": list(out[pair.theirs].shape),
            "shard": shard_of[fused_tensors.whole(pair.theirs)],
            "bytes": stored_bytes(out[pair.theirs].shape, Q8_0)
            if pair.theirs in quantised
            else out[pair.theirs].nbytes,
        }
        for pair in pairs
    ]
    real = [pair for pair in pairs if pair.ours in ours]
    zeros = len(pairs) - len(real)
    notes = [_OF_LATENT.format(len(latent))] if latent else []
    return ConversionPlan(rows, shards, ours, errors, real, zeros, frozenset(quantised), notes)


def _stays(path: str, tensor: Tensor, to: str, dtype: Any, keep_fp32: tuple[str, ...]) -> bool:
    """Whether a parameter is float32 whatever the others are."""
    if not is_float(tensor.dtype):
        return False
    if to == "gguf" and (gguf.stays_float32(path, tensor.shape) or tensor.dtype.itemsize > 4):
        return True
    return dtype is not None and kept_in_float32(path, tensor.shape, keep_fp32)


def _is_latent(source: Checkpoint, path: str, keep_fp32: tuple[str, ...]) -> bool:
    """Whether a weight is rounded to −1, 0 and 1 when it is used, and better not before."""
    rows = jaxmodels.arch(source.arch).TERNARY
    ternary = any(pattern(row).fullmatch(path) for row in rows)
    return ternary and NO_LIST not in keep_fp32 and source.tensors[path].dtype.itemsize > 2


def _tell(errors: dict[str, float], path: str, _: str, error: float) -> None:
    errors[path] = error


def _rows(source: Checkpoint, to: str) -> table.Rows:
    package = jaxmodels.arch(source.arch)
    for name in _TABLES.get(to, ("UPSTREAM",)):
        if rows := getattr(package, name):
            return tuple(rows)
    return own_rows(package)


def _op(inward: str, outward: str) -> str:
    """What happens to a tensor on the whole way; an op and its inverse cancel."""
    steps = [] if inward == outward else [op for op in (inward, outward) if op != "same"]
    return ", ".join(steps) or "same"
