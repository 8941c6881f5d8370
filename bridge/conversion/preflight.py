"""Checks made before a conversion writes anything."""

from collections.abc import Mapping
from pathlib import Path

from bridge.checkpoint.checkpoint import Checkpoint
from bridge.core.moments import Moments
from bridge.core.report import Report
from bridge.core.twins import twin
from bridge.formats import kind
from bridge.formats.format import Format
from jaxmodels.errors import EXISTS, NO_SPACE, USAGE, Problem
from jaxmodels.extras import require
from jaxmodels.runtime.manifest import MANIFEST


def check_format(format: Format, source: Checkpoint) -> None:
    """Checks that a format can hold a model.

    Raises:
        Problem: (usage) the format is not for its architecture, or needs a package that is not
            installed; (mismatch) the format's own code cannot compute this model.
    """
    if format.arch not in ("", source.arch):
        raise Problem(
            f"--to {format.name} is for {format.arch}, and this is {source.arch}",
            where=str(source.path),
            fix="use --to safetensors",
            exit_code=USAGE,
        )
    if format.adapters is not None:
        _check_adapters(format, source)
    if format.needs:
        require(format.needs, f"--to {format.name}")
    if format.pytorch:
        twin(source.arch).keys(source.config)  # raises if its class cannot hold these sizes
    format.check(source.config, source.path)


def _check_adapters(format: Format, source: Checkpoint) -> None:
    """Checks that a model has adapters, of a class that PEFT can adapt.

    Raises:
        Problem: (usage) it has none.
    """
    if twin(source.arch).TRANSFORMERS is None:
        raise Problem(
            f"--to {format.name} is not possible for {source.arch}",
            where=str(source.path),
            why=f"PEFT adapts classes of transformers, which has none for {source.arch}",
            fix="use --to safetensors: the whole model, the adapters merged into it",
            exit_code=USAGE,
        )
    if source.adapters is None:
        raise Problem(
            "there are no LoRA adapters to convert",
            where=str(source.path),
            fix="give a run that was trained with --lora, or use another --to",
            exit_code=USAGE,
        )
    modules = {pair.ours for pair in source.pairs if pair.ours.endswith("/kernel")}
    if others := sorted(source.adapters.pairs.keys() - modules):
        raise Problem(
            f"--to {format.name} is not possible with adapters of {', '.join(others)}",
            where=str(source.path),
            why="PEFT adapts the kernels of layers in this form, and embeddings in another",
            fix="use --to safetensors: the whole model, the adapters merged into it",
            exit_code=USAGE,
        )


def moments_of(source: Checkpoint, format: Format) -> Moments | None:
    """What `--optimizer` converts; None if the state is only a step count, which is always written.

    Raises:
        Problem: (usage) the format holds parameters only; (mismatch) there is none, or
            the format's own optimiser cannot take it.
    """
    if format.moments is None:
        raise Problem(
            f"--optimizer cannot be carried to {format.name}",
            why="it holds parameters only",
            fix="use --to safetensors, or leave --optimizer out",
            exit_code=USAGE,
        )
    moments = format.moments(source.moments(), source.origin, source.path)
    if moments is None:
        source.notes.append("the optimiser is SGD, whose state is the count of updates: carried")
    return moments


def check_dtype(dtype: str, format: Format, known: Mapping[str, Format]) -> None:
    """Checks that the format can hold the numbers of `--dtype`.

    Raises:
        Problem: (usage) it cannot.
    """
    if format.packed and dtype not in ("keep", "float32"):
        raise Problem(
            f"--dtype {dtype} is not for --to {format.name}",
            why="matrices are ternary or int8 in it, and everything else float32",
            fix="leave --dtype out",
            exit_code=USAGE,
        )
    if format.dtypes and dtype not in (*format.dtypes, *_own(format)):
        raise Problem(
            f"--dtype {dtype} is not possible with --to {format.name}",
            why=f"it has {', '.join((*format.dtypes, *_own(format)))}",
            fix="use one of these",
            exit_code=USAGE,
        )
    has = [f.name for f in known.values() if f.quantisation and f.quantisation.dtype == dtype]
    if format.adapters and dtype != "keep":
        raise Problem(
            f"--dtype {dtype} is not possible with --to {format.name}",
            why="adapters keep the dtype that they were trained in",
            fix="leave --dtype out",
            exit_code=USAGE,
        )
    if has and format.name not in has:
        raise Problem(
            f"--dtype {dtype} is for --to {' or '.join(has)}",
            why=f"{format.name} has no such numbers",
            fix="use --dtype bfloat16",
            exit_code=USAGE,
        )


def _own(format: Format) -> tuple[str, ...]:
    """The `--dtype` that only this format has, if there is one."""
    return (format.quantisation.dtype,) if format.quantisation else ()


def check_place(src: Path, dst: Path, force: bool) -> None:
    """Checks that the output replaces neither the source nor anything but an earlier output.

    Raises:
        Problem: (usage) it would replace the source; (exists) as `check_target`.
    """
    source, target = src.resolve(), dst.resolve()
    if target == source or target in source.parents:
        raise Problem(
            "the output would replace its own source",
            where=str(dst),
            fix="give another output path",
            exit_code=USAGE,
        )
    check_target(dst, force)


def check_target(dst: Path, force: bool) -> None:
    """Checks that nothing is replaced, or with `force` only an earlier output.

    Raises:
        Problem: (exists) the path holds something else.
    """
    # Checkpoints of other programs and runs have no manifest at their top.
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


def check_space(report: Report) -> None:
    """Checks that the disk has room.

    Raises:
        Problem: (no space) it has too little.
    """
    if report.disk_needed > report.disk_free:
        raise Problem(
            "the disk is too small",
            where=report.output,
            why=f"{report.disk_needed:,} bytes are needed, {report.disk_free:,} are free",
            fix="free some space, write elsewhere, or use --dtype bfloat16",
            exit_code=NO_SPACE,
        )
