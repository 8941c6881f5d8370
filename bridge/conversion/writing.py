"""Writes a planned conversion into an empty folder."""

from collections.abc import Callable
from pathlib import Path

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.conversion.kept_shards import write_shards
from bridge.conversion.model_directory import description, dtype_of, write_beside
from bridge.conversion.plan import ConversionPlan
from bridge.core.moments import Moments
from bridge.core.tensors import Fingerprint, Tensor
from bridge.formats import model_files
from bridge.formats.format import Output
from jaxmodels.runtime.manifest import write_manifest


def write(
    folder: Path,
    source: Checkpoint,
    plan: ConversionPlan,
    moments: Moments | None,
    progress: Callable[[Tensor], None],
    parts: Path | None = None,
) -> list[str]:
    """Writes all files of the plan's format, the tokeniser's file, and the manifest.

    Args:
        folder: an empty folder.
        source: the model.
        plan: its tensors under their new names.
        moments: AdamW's state under our paths, or None.
        progress: called after each tensor.
        parts: keeps finished shards; see `bridge.conversion.kept_shards`.

    Returns:
        notes.
    """
    carried = None if moments is None else plan.named(moments)
    files: dict[str, str] = {}  # files whose sha256 is known
    notes = []
    if source.tokenizer is not None:
        source.tokenizer.save(folder)
    for name, content in source.carried.items():
        (folder / name).write_bytes(content)
    if plan.format.pytorch:
        digests, files, there = write_shards(folder, parts, plan, progress)
        if there:
            notes.append(f"{there} of {len(plan.shards)} shards were finished by an earlier call")
        dtype = dtype_of(source, plan.ours)
        write_beside(folder, source, plan.format, dtype, plan.notes, plan.packed)
        if carried is not None:
            files |= model_files.write_moments(folder, carried)
    else:
        digests = _write_own(folder, source, plan, carried, progress)
    _write_manifest(folder, source, digests, files)
    return notes


def _write_own(
    folder: Path,
    source: Checkpoint,
    plan: ConversionPlan,
    moments: Moments | None,
    progress: Callable[[Tensor], None],
) -> dict[str, Fingerprint]:
    """Calls the format's own writer; returns tensor name → {"dtype", "shape", digest}."""
    assert plan.format.write is not None
    output = Output(
        folder=folder,
        tensors=plan.tensors,
        config=source.config,
        description=description(source),
        origin=source.origin,
        tokenizer=source.tokenizer,
        moments=moments,
        quantised=plan.quantised,
        adapters=source.adapters and source.adapters.named(plan.pairs),
        inputs_first=all(pair.op == "same" for pair in plan.pairs),
        progress=progress,
    )
    plan.format.write(output)
    return output.digests


def _write_manifest(
    folder: Path, source: Checkpoint, digests: dict[str, Fingerprint], files: dict[str, str]
) -> None:
    """Writes manifest.json, the last file: digests of every tensor and file, source and tool.

    `files` are the sha256 that are known already; the others are computed.
    """
    write_manifest(
        folder,
        {
            "tensors": digests,
            "source": {
                "name": source.path.absolute().name,
                "format": source.format,
                **source.origin,
            },
            "tool": f"jaxmodels {jaxmodels.__version__}",
        },
        files,
    )
