"""Reads back what a conversion wrote, before it gets its name."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.config import values_of
from bridge.checkpoint.loading import model_of
from bridge.checks.parity import FLOAT32, Parity, compare_outputs
from bridge.checks.verification import misrounded_in
from bridge.conversion.plan import ConversionPlan
from bridge.core import table
from bridge.core.moments import Moments, required
from bridge.core.tensors import digest_of
from bridge.formats.format import Format
from bridge.formats.raw import RawCheckpoint, check
from jaxmodels.errors import UNVERIFIED, USAGE, Problem

CHECKS = ("none", "digest", "roundtrip", "logits")
ATOL = 1e-4


class Checks(NamedTuple):
    """The results of the checks."""

    torch: Parity | None = None
    """JAX against PyTorch; None below "logits"."""
    source: Parity | None = None
    """What was written against its source, if numbers were rounded."""


def check_level(level: str, text: str | None, gradients: bool, format: Format) -> None:
    """Checks the options --verify, --text and --gradients.

    Raises:
        Problem: (usage) there is no such level; --text or --gradients is given, and the level
            compares no outputs; or the format cannot be checked in this way.
    """
    if format.run and level == "roundtrip":
        raise Problem(
            f"--verify roundtrip is not possible with --to {format.name}",
            why="what it writes is not read back",
            fix="use --verify logits, which compares its outputs with our model's",
            exit_code=USAGE,
        )
    if format.run and (text is not None or gradients):
        raise Problem(
            f"--text and --gradients are not possible with --to {format.name}",
            why="what it writes is compared with our model on inputs of its own",
            fix="leave them out",
            exit_code=USAGE,
        )
    if level not in CHECKS:
        why = f"known: {', '.join(CHECKS)}"
        raise Problem(f"--verify cannot be {level!r}", why=why, exit_code=USAGE)
    if level != "logits" and (text is not None or gradients):
        raise Problem(
            "--text and --gradients say what --verify logits compares",
            fix="add --verify logits",
            exit_code=USAGE,
        )


def check_written(
    contents: RawCheckpoint,
    written: Checkpoint,
    source: Checkpoint,
    plan: ConversionPlan,
    moments: Moments | None,
    level: str,
    text: str | None = None,
    gradients: bool = False,
) -> Checks:
    """Checks a new folder before it gets its name.

    Args:
        contents: what was written.
        written: the same, opened as a model.
        source: the model that was converted.
        plan: of the conversion.
        moments: the optimiser's state that was written, under our paths.
        level: one of `CHECKS`; see `bridge.convert`.
        text: "logits" compares outputs on it too.
        gradients: "logits" compares gradients too.

    Raises:
        Problem: (verification) a check failed.
    """
    if level == "none":
        return Checks()
    problems: list[str] = []
    if level == "digest":
        with ThreadPoolExecutor(plan.format.readers) as readers:
            list(readers.map(check, contents.tensors.values()))
    else:
        problems += _changed_tensors(written, source, plan)
    if moments is not None:
        problems += _moment_problems(moments, required(written.moments(), contents.path))
    if level in ("roundtrip", "logits"):
        problems += [
            f"the config does not come back as it was: {name}"
            for name in changed_fields(source, written)
            if name not in written.assumed
        ]
    found = from_source = None
    if level == "logits" and not problems:
        found = compare_outputs(written, None, text, gradients)
        problems += found.complaints("JAX and PyTorch", ATOL)
        if any(plan.errors.values()):  # otherwise the tensors equal the source's bit for bit
            from_source = compare_outputs(written, source, text)
    if problems:
        raise Problem(
            "the output does not read back as it was written; it was removed",
            why=table.listing(problems),
            fix="check the disk and try again",
            exit_code=UNVERIFIED,
        )
    return Checks(found, from_source)


def check_by_running(folder: Path, source: Checkpoint, plan: ConversionPlan, level: str) -> Checks:
    """Checks a new folder of a format that is not read back, before it gets its name.

    Args:
        folder: what was written.
        source: what it was made from.
        plan: how.
        level: "logits" compares its outputs with those of our model; "digest" only opens it with
            the library that will run it.

    Raises:
        Problem: (verification) that library cannot open it, or gives other outputs.
    """
    assert plan.format.run is not None
    if level == "none":
        return Checks()
    rounded = replace(source, tensors=plan.ours)
    model = model_of(rounded, FLOAT32) if level == "logits" else None
    why = ""
    try:
        found = plan.format.run(folder, model)
    except Exception as error:  # any error of the other library
        why = f"{type(error).__name__}: {str(error)[:500]}"
    if not why and found is not None and not found <= ATOL:
        why = f"its outputs differ from ours by {found:.3g} > {ATOL:g}"
    if why:
        raise Problem(
            "what was written does not run as our model; it was removed",
            why=why,
            fix="use --to safetensors, and report this",
            exit_code=UNVERIFIED,
        )
    return Checks() if found is None else Checks(Parity(found, None, None, None))


def changed_fields(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Fields in which the configs of two models of one architecture differ."""
    other = values_of(b.config)
    return [name for name, value in values_of(a.config).items() if other[name] != value]


def _changed_tensors(
    written: Checkpoint, source: Checkpoint, plan: ConversionPlan
) -> Iterator[str]:
    for path, tensor in written.tensors.items():
        if digest_of(tensor.read()) != digest_of(plan.ours[path].read()):
            yield f"{path} does not come back as it was"
    for path, error in plan.errors.items():
        if error and misrounded_in(written, path, source):
            yield f"{path} is further from its source than rounding takes it"


def _moment_problems(moments: Moments, written: Moments) -> Iterator[str]:
    if moments.count != written.count:
        yield "the optimiser's count is wrong"
    for held, found in ((moments.mu, written.mu), (moments.nu, written.nu)):
        for path, tensor in held.items():
            if digest_of(tensor.read()) != digest_of(found[path].read()):
                yield f"the moments of {path} do not come back as they were"
