"""Converts any known source to a model directory or another format, one tensor at a time.

`convert` does it all: open, plan, write, read back, check, report.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bridge.checkpoint import averages
from bridge.checkpoint.config import values_of
from bridge.checkpoint.opening import bind, open_checkpoint
from bridge.checkpoint.transfer import part_of
from bridge.checks.parity import check_comparable
from bridge.conversion.kept_shards import kept_parts
from bridge.conversion.plan import make_plan
from bridge.conversion.preflight import (
    check_dtype,
    check_format,
    check_place,
    check_space,
    moments_of,
)
from bridge.conversion.progress import show
from bridge.conversion.readback import check_by_running, check_level, check_written
from bridge.conversion.report import report_of_output, report_of_plan, unsaid
from bridge.conversion.writing import write
from bridge.core.report import Report
from bridge.formats import recognise, target, targets
from bridge.formats.tokenizer import given_tokenizer
from bridge.storage.safetensors_writer import parse_size
from jaxmodels.files import atomic_folder


def convert(
    src: str | Path,
    dst: str | Path,
    to: str = "safetensors",
    arch: str | None = None,
    config: Mapping[str, Any] | None = None,
    vocab: str | Path | None = None,
    dtype: str = "keep",
    keep_fp32: str | Iterable[str] | None = None,
    max_shard_size: str | int = "5GB",
    dry_run: bool = False,
    verify: str = "digest",
    force: bool = False,
    progress: bool = False,
    optimizer: bool = False,
    text: str | None = None,
    gradients: bool = False,
    weights: str | None = None,
) -> Report:
    """Converts a checkpoint; the output appears complete and checked, or not at all.

    A call with the same arguments after one that was killed keeps the shards that are complete.

    Args:
        src: any source that `bridge.load` takes.
        dst: the folder to create.
        to: the output format:
            "safetensors": a model directory that PyTorch and JAX load;
            "orbax": an Orbax checkpoint that the original program restores, under its names (ours
                if there is no such program);
            "gpt2", "dinov2": a folder of transformers;
            "dinov2-pth": the state dict of DINOv2's published code;
            "nanogpt": nanoGPT's `out_dir` with its `ckpt.pt`;
            "gguf": llama.cpp's `model.gguf`;
            "bwetaf": the folder of BwETAF's package;
            "wigip-zip": wigip's `step_N.zip`;
            "bitgen": BitGen Stage 1's `checkpoint-N.pt`;
            "packed": a bitgen's model directory in 2 and 8 bits (`bridge/core/packing.py`);
            "onnx": graphs for onnxruntime;
            "peft": the adapters of a run trained with --lora.
            With "dinov2" and "dinov2-pth", the tower of a bitgen or bitgen_stage1 is converted.
        arch: the architecture, if the files do not determine it.
        config: fields that are not in the files, such as {"heads": 4}.
        vocab: the tokeniser's file (characters.json, tokenizer.json, vocab.json beside merges.txt,
            nanoGPT's meta.pkl or a JSON list of characters) or folder, if not beside the source.
        dtype: "keep", "float32", "bfloat16" or "float16"; for gguf also "q8_0", for onnx "int8".
        keep_fp32: path patterns of further parameters that stay float32, besides the vectors of
            norms, gates and temperatures and the matrices of ternary layers, which always do;
            "none" rounds all parameters.
        max_shard_size: safetensors files are split above this size.
        dry_run: plan only; nothing is written.
        verify: "none"; "digest": reads back what was written; "roundtrip": also maps it back and
            compares it with the source bit for bit; "logits": also compares the outputs of
            PyTorch and JAX.
        force: replace an earlier output.
        progress: show the progress on standard error.
        optimizer: convert AdamW's moments too; the format must be able to hold them.
        text: "logits" compares outputs on this text too, besides random inputs.
        gradients: "logits" compares the gradient of every parameter too.
        weights: of a run, "ema" or "raw", as `bridge.load`; moments are those of the raw ones.

    Returns:
        what was (or, for a dry run, would be) written: `files` (for a dry run, only those of
        tensors whose names are known); `tensors`, `parameters` and `bytes` of the model;
        `disk_needed` and `memory_needed` (bytes); `notes`, and the other keys of `--json`.

    Raises:
        Problem: (corrupt, mismatch, usage) as `bridge.load`; (exists) `dst` is there;
            (no space) the disk is too small; (verification) the output failed a check.
    """
    src, dst = Path(src), Path(dst)
    format = target(to)
    check_level(verify, text, gradients, format)
    if optimizer and averages.CHOICE not in (config or {}):
        weights = weights or averages.RAW  # whose moments they are

    source = open_checkpoint(src, arch, config, weights)
    source = part_of(source, format.arch) if format.arch else source
    check_format(format, source)
    moments = moments_of(source, format) if optimizer else None
    source = given_tokenizer(source, Path(vocab)) if vocab is not None else source

    check_dtype(dtype, format, targets())
    patterns = (keep_fp32,) if isinstance(keep_fp32, str) else tuple(keep_fp32 or ())
    plan = make_plan(source, format, dtype, patterns, parse_size(max_shard_size))
    report = report_of_plan(source, dst, plan, moments)
    if verify == "logits" and not format.run:
        check_comparable(source, text, gradients)
    if dry_run:
        return Report(report, plan=plan.rows, dry_run=True)
    check_place(src, dst, force)
    check_space(report)

    shown = show(plan.bytes) if progress else nullcontext(lambda _: None)
    kept = kept_parts(dst, src, plan, source.origin.get("weights", ""))
    with atomic_folder(dst, force) as folder, kept as parts, shown as tell:
        report["notes"] += write(folder, source, plan, moments, tell, parts)
        if format.run:
            written, checks = source, check_by_running(folder, source, plan, verify)
        else:
            contents = recognise(folder)
            written = bind(contents, otherwise=values_of(source.config))
            checks = check_written(
                contents, written, source, plan, moments, verify, text, gradients
            )
    report |= report_of_output(dst, plan, checks)
    report["notes"] = [*report.notes, *unsaid(source, plan, written)]
    return Report(report, verified=verify)
