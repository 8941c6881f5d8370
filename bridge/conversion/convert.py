"""From any known source to a model directory or a seed's own format, one tensor at a time."""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bridge.checkpoint import averages
from bridge.checkpoint.config import values_of
from bridge.checkpoint.opening import Checkpoint, bind, open_checkpoint
from bridge.checkpoint.transfer import part_of
from bridge.checks.parity import check_wishes
from bridge.checks.verification import said_of, said_of_source
from bridge.conversion.kept_shards import kept_parts
from bridge.conversion.model_directory import differences
from bridge.conversion.plan import PYTORCH, ConversionPlan, make_plan
from bridge.conversion.progress import show
from bridge.conversion.readback import CHECKS, changed_fields, check_written
from bridge.conversion.targets import TARGETS, check_target, write_target
from bridge.core.moments import Moments, required
from bridge.core.report import Report
from bridge.core.tensors import target_dtype
from bridge.formats import dinov2_pth, gguf, kind, nanogpt, recognise, wigip
from bridge.formats.tokenizer import given_tokenizer
from bridge.storage.safetensors_writer import parse_size
from jaxmodels.errors import EXISTS, NO_SPACE, USAGE, Problem
from jaxmodels.files import atomic_folder, files_below
from jaxmodels.runtime.manifest import MANIFEST
from jaxmodels.sizes import vocab_used

OVERHEAD = 1_000_000  # bytes for all files but the tensors


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
    """Converts a checkpoint; the output appears whole, or not at all.

    A call with the same arguments after one that was killed goes on with the shards that are whole.

    Args:
        src: any source that `bridge.load` takes.
        dst: the folder to create.
        to: "safetensors", a model directory that PyTorch and JAX load; "orbax", an Orbax
            checkpoint in the names of the architecture's seed (ours, if the seed has none), so
            that the seed's own code restores it. Run directories hold our names already.
            "gguf", llama.cpp's `model.gguf`;
            "gpt2" or "dinov2", such a folder of transformers; "nanogpt", nanoGPT's `out_dir` with
            its `ckpt.pt`; "bwetaf", the folder of the seed's package; "wigip-zip", `step_N.zip`;
            "bitgen", `checkpoint-N.pt` of BitGen Stage 1; "dinov2-pth", the state dict of DINOv2's
            published code. A bitgen, or bitgen_stage1, goes to these two by its tower.
        arch: the architecture, if the files do not say it.
        config: fields that the files cannot say, such as {"heads": 4}.
        vocab: the tokeniser's file (characters.json, tokenizer.json, vocab.json beside merges.txt,
            nanoGPT's meta.pkl or a JSON list of characters) or folder, if not beside the source.
        dtype: "keep", "float32", "bfloat16" or "float16"; to gguf also "q8_0".
        keep_fp32: path patterns of parameters that are written in float32 all the same, besides
            the vectors of norms, gates and temperatures and the matrices of ternary layers, which
            always are; "none" lets them go.
        max_shard_size: safetensors files are split above this size.
        dry_run: plan only; nothing is written.
        verify: "none"; "digest": what was written is read back; "roundtrip": and equals the
            source bit for bit through the tables; "logits": and gives the same outputs in
            PyTorch and JAX. Each includes those before it.
        force: replace an earlier output.
        progress: show on standard error how far it is.
        optimizer: carry AdamW's moments along; the target must be able to hold them.
        text: "logits" compares outputs on it too, besides random inputs.
        gradients: "logits" compares the gradient of every parameter too.
        weights: of a run, "ema" or "raw", as `bridge.load`; moments are those of the raw ones.

    Returns:
        what was (or, for a dry run, would be) written: `files` (for a dry run, only those of
        tensors whose names are known); `tensors`, `parameters` and `bytes` of the model;
        `disk_needed` and `memory_needed` (bytes); `notes`, and the other keys of `--json`.

    Raises:
        Problem: (corrupt, mismatch, usage) as `bridge.load`; (exists) `dst` is there;
            (no space) the disk is too small; (verification) what was written is not right.
    """
    _choice("--to", to, TARGETS)
    _choice("--verify", verify, CHECKS)
    target, source_path = Path(dst), Path(src)
    if optimizer and averages.CHOICE not in (config or {}):
        weights = weights or averages.RAW  # whose moments they are
    source = open_checkpoint(source_path, arch, config, weights)
    if TARGETS[to]:
        source = part_of(source, TARGETS[to])
    check_target(to, source)
    moments = _moments(source, to) if optimizer else None
    if optimizer and moments is None:
        source.notes.append("the optimiser is SGD, whose state is the count of updates: carried")
    if vocab is not None:
        source = given_tokenizer(source, Path(vocab))
    patterns = (keep_fp32,) if isinstance(keep_fp32, str) else tuple(keep_fp32 or ())
    plan = make_plan(source, to, _dtype(dtype, to), patterns, parse_size(max_shard_size))
    carried = None if moments is None else plan.named(moments)
    report = _report(source, target, to, plan, carried)
    _check_wishes(source, verify, text, gradients)
    if dry_run:
        return Report(report, plan=plan.rows, dry_run=True)
    _may_write(source_path, target, force)
    _enough_space(report)
    shown = show(plan.bytes) if progress else nullcontext(lambda _: None)
    with (
        atomic_folder(target, force) as folder,
        kept_parts(target, source_path, plan, source.origin.get("weights", "")) as parts,
        shown as tell,
    ):
        report["notes"] += write_target(folder, source, to, plan, carried, tell, parts)
        contents = recognise(folder)
        written = bind(contents, otherwise=values_of(source.config))
        report["files"] = [str(path.relative_to(folder)) for path in files_below(folder)]
        wishes = text, gradients
        checks = check_written(contents, source, plan, written, moments, verify, wishes)
    report |= said_of(checks[0]) | said_of_source(checks[1])
    report["notes"] = [*report.notes, *_unsaid(source, written, to)]
    report["max_rounding_error"] = max(plan.errors.values(), default=0.0)
    report["max_rounding_error_at"] = max(plan.errors, key=lambda p: plan.errors[p], default=None)
    return Report(report, verified=verify)


def _dtype(name: str, to: str) -> Any:
    """A `--dtype` choice as `make_plan` takes it."""
    if name == gguf.QUANTISED and to != gguf.FORMAT:
        raise Problem(
            f"--dtype {name} is for --to gguf",
            why=f"{to} has no such numbers",
            fix="use --dtype bfloat16",
            exit_code=USAGE,
        )
    return name if name == gguf.QUANTISED else target_dtype(name)


def _check_wishes(source: Checkpoint, verify: str, text: str | None, gradients: bool) -> None:
    """Refuses before anything is written what could not be checked after it."""
    if verify == "logits":
        check_wishes(source, text, gradients)
    elif text is not None or gradients:
        raise Problem(
            "--text and --gradients say what --verify logits compares",
            fix="add --verify logits",
            exit_code=USAGE,
        )


def _moments(source: Checkpoint, to: str) -> Moments | None:
    """What `--optimizer` carries along; None where the state is a count, which always goes."""
    if to == wigip.FORMAT:
        return wigip.carried(source.moments(), source.origin, source.path)
    if to in ("orbax", gguf.FORMAT, dinov2_pth.FORMAT):
        raise Problem(
            f"--optimizer cannot be carried to {to}",
            why="it holds parameters only",
            fix="use --to safetensors, or leave --optimizer out",
            exit_code=USAGE,
        )
    return required(source.moments(), source.path)


def _unsaid(source: Checkpoint, written: Checkpoint, to: str) -> list[str]:
    """What the target cannot say and a reader would assume otherwise."""
    changed = changed_fields(source, written)
    lost = [name for name in written.assumed if name in changed or name in written.unsaid]
    values = values_of(source.config)
    notes = [f"{to} cannot store {name} = {values[name]}" for name in lost]
    unlike = differences(source) if to in PYTORCH else ""
    return [*notes, unlike] if unlike else notes


def _may_write(src: Path, dst: Path, force: bool) -> None:
    """Refuses to replace the source, or a folder that is no earlier output."""
    source, target = src.resolve(), dst.resolve()
    if target == source or target in source.parents:
        raise Problem(
            "the output would replace its own source",
            where=str(dst),
            fix="give another output path",
            exit_code=USAGE,
        )
    # Other people's checkpoints, and runs, have no manifest at their top.
    ours = (dst / MANIFEST).is_file() and kind(dst) is not None
    foreign = dst.is_file() or (dst.is_dir() and any(dst.iterdir()) and not ours)
    if force and foreign:
        raise Problem(
            "the output path holds something that `convert` did not write",
            where=str(dst),
            why="--force replaces a whole folder, and only one that an earlier run wrote",
            fix="give another output path, or remove it yourself",
            exit_code=EXISTS,
        )
    if dst.exists() and not force:
        raise Problem(
            "the output exists already",
            where=str(dst),
            fix="give another path, or --force to replace it",
            exit_code=EXISTS,
        )


def _enough_space(report: Report) -> None:
    if report.disk_needed > report.disk_free:
        raise Problem(
            "the disk is too small",
            where=report.output,
            why=f"{report.disk_needed:,} bytes are needed, {report.disk_free:,} are free",
            fix="free some space, write elsewhere, or use --dtype bfloat16",
            exit_code=NO_SPACE,
        )


def _report(
    source: Checkpoint, dst: Path, to: str, plan: ConversionPlan, moments: Moments | None
) -> Report:
    held = [] if moments is None else [*moments.mu.values(), *moments.nu.values()]
    needed = plan.bytes + sum(tensor.nbytes for tensor in held) + OVERHEAD
    size = sum(tensor.nbytes for tensor in plan.ours.values())
    notes = [*source.notes, *plan.notes]
    if to == gguf.FORMAT:
        notes += gguf.notes_on(source.config, source.tokenizer)
    if to == "nanogpt":
        notes += nanogpt.notes_on(source.origin, source.tokenizer)
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
        format=to,
        arch=source.arch,
        preset=source.preset,
        tensors=len(plan.ours),
        parameters=source.parameters,
        bytes=size,
        files=[name for name in plan.shards if name],
        # None where there is no text to write with one.
        vocab_present=source.tokenizer is not None if vocab_used(source.config) else None,
        assumed=source.assumed,
        notes=notes,
        optimizer=moments is not None,
        disk_needed=needed,
        memory_needed=plan.memory,
        disk_free=shutil.disk_usage(there).free,
    )


def _choice(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise Problem(
            f"{option} cannot be {value!r}", why=f"known: {', '.join(known)}", exit_code=USAGE
        )
