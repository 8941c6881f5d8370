"""The report of a conversion: its plan, and what was written."""

import shutil
from pathlib import Path
from typing import Any

from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.config import values_of
from bridge.checks.verification import parity_fields, source_parity_fields
from bridge.conversion.model_directory import differences
from bridge.conversion.plan import ConversionPlan
from bridge.conversion.readback import Checks, changed_fields
from bridge.core.moments import Moments
from bridge.core.report import Report
from jaxmodels.files import files_below
from jaxmodels.sizes import vocab_used

OVERHEAD = 1_000_000  # bytes for all files but the tensors


def report_of_plan(
    source: Checkpoint, dst: Path, plan: ConversionPlan, moments: Moments | None
) -> Report:
    """What a conversion will write, and the disk space and memory it needs."""
    held = [] if moments is None else [*moments.mu.values(), *moments.nu.values()]
    written = plan.adapters or list(plan.ours.values())
    few_bits = plan.packed or plan.quantised
    size = plan.bytes if few_bits else sum(tensor.nbytes for tensor in written)
    parameters = sum(tensor.size for tensor in plan.adapters) or source.parameters
    format = plan.format
    notes = [*source.notes, *plan.notes]
    notes += format.notes(source.config, source.origin, source.tokenizer)
    if source.packed and format.quantisation and not plan.quantised:
        notes.append(
            "the int8 matrices of the packed model are float32 in the output, with the same "
            f"values; --dtype {format.quantisation.dtype} writes them in 8 bits"
        )
    if plan.zeros:
        notes.append(
            f"{plan.zeros} tensors of zeros added ({plan.bytes - size:,} bytes"
            ", not counted): PyTorch's class always has them"
        )
    there = next(parent for parent in (dst.absolute(), *dst.absolute().parents) if parent.exists())
    return Report(
        source=str(source.path),
        source_format=source.format,
        output=str(dst),
        format=format.name,
        arch=source.arch,
        preset=source.preset,
        tensors=len(written),
        parameters=parameters,
        bytes=size,
        files=[name for name in plan.shards if name],
        # None where the model reads no text.
        vocab_present=source.tokenizer is not None if vocab_used(source.config) else None,
        assumed=source.assumed,
        notes=notes,
        optimizer=moments is not None,
        disk_needed=plan.bytes + sum(tensor.nbytes for tensor in held) + OVERHEAD,
        memory_needed=plan.memory,
        disk_free=shutil.disk_usage(there).free,
    )


def report_of_output(folder: Path, plan: ConversionPlan, checks: Checks) -> dict[str, Any]:
    """What was written, and what its checks found."""
    # The formats with ternary weights choose their own number of bits.
    written = [folder / name for name in plan.shards] if plan.format.ternary else []
    return {
        **({"bytes": sum(file.stat().st_size for file in written)} if written else {}),
        "files": [str(path.relative_to(folder)) for path in files_below(folder)],
        **parity_fields(checks.torch),
        **source_parity_fields(checks.source),
        "max_rounding_error": max(plan.errors.values(), default=0.0),
        "max_rounding_error_at": max(plan.errors, key=lambda p: plan.errors[p], default=None),
    }


def unsaid(source: Checkpoint, plan: ConversionPlan, written: Checkpoint) -> list[str]:
    """Notes on what the format cannot express, where its readers assume something else."""
    changed = changed_fields(source, written)
    lost = [name for name in written.assumed if name in changed or name in written.unsaid]
    values = values_of(source.config)
    notes = [f"{plan.format.name} cannot store {name} = {values[name]}" for name in lost]
    unlike = differences(source) if plan.format.pytorch else ""
    return [*notes, unlike] if unlike else notes
