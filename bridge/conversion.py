"""From any known source to a model directory or an Orbax checkpoint, one tensor at a time."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge import orbax, table
from bridge.contents import kind, recognise
from bridge.model_directory import complete, describe_model, write_manifest
from bridge.plan import ZEROS, Plan, make_plan
from bridge.progress import show
from bridge.report import Report
from bridge.safetensors_writer import parse_size, write_safetensors
from bridge.sources import Source, bind, open_source
from bridge.tensors import FLOATS, Tensor, digest_of, is_float, target_dtype
from bridge.verification import digest_problems, output_difference
from bridge.vocabulary import check_size, read_tokenizer
from jaxmodels.errors import EXISTS, NO_SPACE, UNVERIFIED, USAGE, Problem
from jaxmodels.runtime.files import whole_folder

TARGETS = ("safetensors", "orbax")
CHECKS = ("none", "digest", "roundtrip", "logits")
OVERHEAD = 1_000_000  # bytes for all files but the tensors
ATOL = 1e-4


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
) -> Report:
    """Converts a checkpoint; the output appears whole, or not at all.

    Args:
        src: any source that `bridge.load` takes.
        dst: the folder to create.
        to: "safetensors", a model directory that PyTorch and JAX load; "orbax", an Orbax
            checkpoint in the names of the architecture's seed (ours, if the seed has none), so
            that the seed's own code restores it. Run directories hold our names already.
        arch: the architecture, if the files do not say it.
        config: fields that the files cannot say, such as {"heads": 4}.
        vocab: the tokeniser's file (characters.json or tokenizer.json), if not beside the source.
        dtype: "keep", "float32", "bfloat16" or "float16".
        keep_fp32: path patterns of parameters that are written in float32 all the same.
        max_shard_size: safetensors files are split above this size.
        dry_run: plan only; nothing is written.
        verify: "none"; "digest": what was written is read back; "roundtrip": and equals the
            source bit for bit through the tables; "logits": and gives the same outputs in
            PyTorch and JAX. Each includes those before it.
        force: replace an earlier output.
        progress: show on standard error how far it is.

    Returns:
        what was (or, for a dry run, would be) written.

    Raises:
        Problem: (corrupt, mismatch, usage) as `bridge.load`; (exists) `dst` is there;
            (no space) the disk is too small; (verification) what was written is not right.
    """
    _choice("--to", to, TARGETS)
    _choice("--verify", verify, CHECKS)
    target, source_path = Path(dst), Path(src)
    source = open_source(source_path, arch, config)
    if vocab is not None:
        source = _with_tokenizer(source, Path(vocab))
    patterns = (keep_fp32,) if isinstance(keep_fp32, str) else tuple(keep_fp32 or ())
    plan = make_plan(source, to, target_dtype(dtype), patterns, parse_size(max_shard_size))
    report = _report(source, target, to, plan)
    if dry_run:
        return Report(report, plan=plan.rows, dry_run=True)
    _may_write(source_path, target, force)
    _enough_space(report)
    shown = show(plan.bytes) if progress else nullcontext(lambda _: None)
    with whole_folder(target, force) as folder, shown as tell:
        _write(folder, source, to, plan, tell)
        report["max_abs_logit_diff"] = _verify(folder, source, plan, verify)
    report["max_rounding_error"] = max(plan.errors.values(), default=0.0)
    return Report(report, verified=verify)


def _with_tokenizer(source: Source, file: Path) -> Source:
    tokenizer = read_tokenizer(file)
    check_size(tokenizer, source.config, file)
    return replace(source, tokenizer=tokenizer)


def _write(
    folder: Path, source: Source, to: str, plan: Plan, tell: Callable[[Tensor], None]
) -> None:
    if to == "safetensors":
        dtypes = {str(t.dtype) for t in plan.ours.values() if is_float(t.dtype)}
        digests = write_safetensors(folder, plan.shards, tell)
        complete(folder, source, dtypes.pop() if len(dtypes) == 1 else FLOATS[0])
    else:
        digests = orbax.write_tree(folder, plan.shards[""], tell)
        describe_model(folder, source, "")
    write_manifest(folder, source, digests)


def _verify(folder: Path, source: Source, plan: Plan, level: str) -> float | None:
    """Checks the new folder before it gets its name; see `convert`."""
    if level == "none":
        return None
    problems = digest_problems(folder) or []
    written = bind(recognise(folder))
    difference = None
    for path, tensor in written.tensors.items():
        array = tensor.read()  # compares it with its digest
        if level != "digest" and digest_of(array) != digest_of(plan.ours[path].read()):
            problems.append(f"{path} does not come back as it was")
    if level in ("roundtrip", "logits") and written.config != source.config:
        problems.append("the config does not come back as it was")
    if level == "logits" and not problems:
        difference = output_difference(written)
        if not difference <= ATOL:
            problems.append(f"outputs of JAX and PyTorch differ by {difference:.3g} > {ATOL:g}")
    if problems:
        raise Problem(
            "the output is not what was to be written; it was removed",
            why=table.listing(problems),
            fix="check the disk and try again",
            exit_code=UNVERIFIED,
        )
    return difference


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
    foreign = dst.is_file() or (dst.is_dir() and any(dst.iterdir()) and kind(dst) is None)
    if force and foreign:
        raise Problem(
            "the output path holds something that is no checkpoint",
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


def _report(source: Source, dst: Path, to: str, plan: Plan) -> Report:
    there = next(parent for parent in (dst.absolute(), *dst.absolute().parents) if parent.exists())
    return Report(
        source=str(source.path),
        source_format=source.format,
        output=str(dst),
        format=to,
        arch=source.arch,
        preset=source.preset,
        tensors=len(plan.rows),
        parameters=sum(tensor.size for tensor in plan.ours.values()),
        bytes=plan.bytes,
        files=[name for name in plan.shards if name],
        vocab_present=source.tokenizer is not None,
        assumed=source.assumed,
        notes=source.notes + _additions(plan),
        disk_needed=plan.bytes + OVERHEAD,
        disk_free=shutil.disk_usage(there).free,
    )


def _additions(plan: Plan) -> list[str]:
    count = sum(row["from"] == ZEROS for row in plan.rows)
    return [f"{count} tensors of zeros added: PyTorch's class always has them"] if count else []


def _choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Problem(
            f"{option} cannot be {value!r}", why=f"known: {', '.join(known)}", exit_code=USAGE
        )
