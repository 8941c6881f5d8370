"""Plans what a conversion will write: the file, name and dtype of each tensor."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.zeros import filled
from bridge.conversion.packed_plan import pack_all, stored
from bridge.core import fused_tensors, table
from bridge.core.layouts import own_rows
from bridge.core.moments import Moments
from bridge.core.packing import Packed
from bridge.core.table import Pair
from bridge.core.tensors import (
    DTYPES,
    NO_LIST,
    Tensor,
    cast,
    is_float,
    kept_in_float32,
    target_dtype,
)
from bridge.formats.format import Format, Quantisation
from bridge.storage.safetensors_writer import plan_shards
from jaxmodels.runtime.paths import pattern

_OF_LATENT = (
    "{} matrices of ternary layers stay float32: rounded to less, a few of their ternary values "
    "would be others; --keep-fp32 none rounds them all the same"
)
_LIBRARIES = 300_000_000  # bytes of the process before it reads a tensor


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write."""

    format: Format
    rows: list[dict[str, Any]]
    """For each tensor to be written: from, to, op, dtype, shape, shard, bytes."""
    shards: dict[str, list[Tensor]]
    """File ("" where a format has many) → tensors under their new names, unread."""
    ours: dict[str, Tensor]
    """Our path → tensor in its new dtype, unread."""
    errors: dict[str, float]
    """Our path → rounding error; filled while tensors are read."""
    pairs: list[Pair]
    """The map between our paths and the format's names."""
    zeros: int
    """How many tensors of zeros are added, because the format cannot be without."""
    quantised: frozenset[str]
    """New names of the tensors that are written in the format's quantisation."""
    packed: dict[str, Packed]
    """New name → matrix of those that are written in few bits."""
    notes: list[str]
    adapters: list[Tensor]
    """Of a format that holds only adapters: what is written of the model, unread."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """New name → tensor, unread."""
        return {tensor.name: tensor for held in self.shards.values() for tensor in held}

    def named(self, moments: Moments) -> Moments:
        """AdamW's state under the format's names and in its layout, in the state's own dtype."""
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
        """Estimated bytes of memory while writing: one tensor is held at a time."""
        return _LIBRARIES + max((row["bytes"] for row in self.rows), default=0)


def make_plan(
    source: Checkpoint, format: Format, dtype: str, keep_fp32: tuple[str, ...], max_shard: int
) -> ConversionPlan:
    """Decides the file, name and dtype of each tensor; reads none.

    Args:
        source: the model.
        format: the output format.
        dtype: `--dtype`: of floating-point tensors; "keep" for their own, or the format's
            quantisation.
        keep_fp32: path patterns of parameters that stay float32; see `bridge.convert`.
        max_shard: bytes of a safetensors file.

    Raises:
        Problem: (usage) there is no such dtype.
    """
    rows = _table_of(source.arch, format)
    packed: dict[str, Packed] = {}
    quantised: set[str] = set()
    notes: list[str] = []
    if format.packed:
        ours, packed, errors = pack_all(source, rows)
    else:
        ours, quantised, errors, notes = _cast_all(source, rows, format, dtype, keep_fp32)
    complete = filled(source.arch, source.config, ours) if format.filled else ours
    pairs = table.pairs(rows, complete)
    out = {pair.theirs: pair.export(complete[pair.ours]) for pair in pairs}
    ordered = {n: out[n] for n in table.in_order(rows, out)}
    tensors = stored(ordered, packed) if packed else list(fused_tensors.join(ordered).values())
    shards = {format.file(source.origin): tensors}
    if format.pytorch:
        shards = plan_shards(tensors, max_shard)
    real = [pair for pair in pairs if pair.ours in ours]
    adapters, described = _adapters(source, format, pairs)
    return ConversionPlan(
        format=format,
        rows=described or _report_rows(source, format, pairs, ours, out, shards, quantised, packed),
        shards=shards,
        ours=ours,
        errors=errors,
        pairs=real,
        zeros=len(pairs) - len(real),
        quantised=frozenset(quantised),
        packed=packed,
        notes=notes,
        adapters=adapters,
    )


def _adapters(
    source: Checkpoint, format: Format, pairs: list[Pair]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What a format for adapters writes, and its rows in the report; empty for other formats."""
    if format.adapters is None or source.adapters is None:
        return [], []
    written = format.adapters(source.adapters.named(pairs))
    held = [tensor for pair in source.adapters.pairs.values() for tensor in pair]
    rows = [
        {
            "from": one.name,
            "to": other.name,
            "op": "transpose",
            "dtype": str(other.dtype),
            "shape": list(other.shape),
            "shard": format.file(source.origin),
            "bytes": other.nbytes,
        }
        for one, other in zip(held, written, strict=True)
    ]
    return written, rows


def _table_of(arch: str, format: Format) -> table.Rows:
    package = jaxmodels.arch(arch)
    for name in format.tables:
        if rows := getattr(package, name):
            return tuple(rows)
    return own_rows(package)


def _cast_all(
    source: Checkpoint, rows: table.Rows, format: Format, dtype: str, keep_fp32: tuple[str, ...]
) -> tuple[dict[str, Tensor], set[str], dict[str, float], list[str]]:
    """Our path → tensor in its new dtype, unread; new names of quantised tensors; where rounding
    errors will be found; notes."""
    quantisation, wanted = _chosen(dtype, format)
    places = table.pairs(rows, source.tensors)
    stay, latent = set(), set()  # of fused tensors, whose parts share a dtype
    for pair in places:
        tensor, name = source.tensors[pair.ours], fused_tensors.fused_name(pair.theirs)
        if dtype != "keep" and _is_latent(source, pair.ours, keep_fp32):
            latent.add(name)
        if is_float(tensor.dtype) and (
            format.stays_float32(pair.ours, tensor)
            or (dtype != "keep" and kept_in_float32(pair.ours, tensor.shape, keep_fp32))
        ):
            stay.add(name)
    ours: dict[str, Tensor] = {}
    quantised: set[str] = set()
    errors: dict[str, float] = {}
    for pair in places:
        tensor = source.tensors[pair.ours]
        exact = DTYPES["F32"] if fused_tensors.fused_name(pair.theirs) in stay | latent else None
        if pair.ours in source.state:
            exact = tensor.dtype
        note_error = partial(_note_error, errors, pair.ours)
        if quantisation and exact is None:
            theirs = quantisation.rounded(pair.export(tensor), note_error)
            ours[pair.ours] = pair.load(theirs, tensor.shape)
            quantised |= {pair.theirs} if quantisation.fits(theirs.shape) else set()
        else:
            ours[pair.ours] = cast(tensor, exact or wanted or tensor.dtype, note_error)
    notes = [_OF_LATENT.format(len(latent))] if latent and not format.ternary else []
    return ours, quantised, errors, notes


def _chosen(dtype: str, format: Format) -> tuple[Quantisation | None, Any]:
    """The format's quantisation, or the dtype, if `--dtype` names one."""
    if format.quantisation and dtype == format.quantisation.dtype:
        return format.quantisation, None
    return None, target_dtype(dtype)


def _is_latent(source: Checkpoint, path: str, keep_fp32: tuple[str, ...]) -> bool:
    """Whether a weight is rounded to −1, 0 and 1 when it is used, so that rounding it before
    that could flip its value."""
    rows = jaxmodels.arch(source.arch).TERNARY
    ternary = any(pattern(row).fullmatch(path) for row in rows)
    return ternary and NO_LIST not in keep_fp32 and source.tensors[path].dtype.itemsize > 2


def _note_error(errors: dict[str, float], path: str, _: str, error: float) -> None:
    errors[path] = error


def _report_rows(
    source: Checkpoint,
    format: Format,
    pairs: list[Pair],
    ours: dict[str, Tensor],
    out: dict[str, Tensor],
    shards: dict[str, list[Tensor]],
    quantised: set[str],
    packed: dict[str, Packed],
) -> list[dict[str, Any]]:
    """What a dry run shows: a row for each tensor."""
    shard_of = {tensor.name: name for name, held in shards.items() for tensor in held}
    read = {pair.ours: pair for pair in source.pairs}
    rows = []
    for pair in pairs:
        tensor, inward = out[pair.theirs], read.get(pair.ours)
        new = "a new model's" if pair.ours in ours else "zeros"
        dtype, size = str(tensor.dtype), tensor.nbytes
        if format.quantisation and pair.theirs in quantised:
            dtype = format.quantisation.dtype
            size = format.quantisation.stored_bytes(tensor.shape)
        if pair.theirs in packed:
            dtype, size = packed[pair.theirs].kind, packed[pair.theirs].nbytes
        rows.append(
            {
                "from": inward.theirs if inward else new,
                "to": pair.theirs,
                "op": _op(inward.op if inward else "same", pair.op),
                "dtype": dtype,
                "shape": list(tensor.shape),
                "shard": shard_of[fused_tensors.fused_name(pair.theirs)],
                "bytes": size,
            }
        )
    return rows


def _op(inward: str, outward: str) -> str:
    """The operation on a tensor between source and format; an operation and its inverse cancel."""
    steps = [] if inward == outward else [op for op in (inward, outward) if op != "same"]
    return ", ".join(steps) or "same"
