"""Checks that a checkpoint is what was written, and the same model on both sides."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.checkpoint.averages import as_in
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.config import values_of
from bridge.checkpoint.opening import bind, open_checkpoint
from bridge.checkpoint.transfer import part_of
from bridge.checks.parity import Parity, compare_outputs
from bridge.checks.rounding import misrounded, packed_wrong
from bridge.core.report import Report
from bridge.core.tensors import compare
from bridge.formats import recognise
from bridge.formats.raw import RawCheckpoint
from bridge.formats.runs import is_run, is_step, not_finite
from jaxmodels.errors import USAGE, Problem
from jaxmodels.extras import installed, require
from jaxmodels.runtime.manifest import MANIFEST, damage
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.runs.seal import file_damage, sealed
from jaxmodels.runtime.runs.sound import hold, unsound

CARD = "README.md"


def verify(
    path: str | Path,
    against: str | Path | None = None,
    atol: float = 1e-4,
    text: str | None = None,
    gradients: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Checks digests, JAX against PyTorch, and (with `against`) every tensor and the outputs.

    Args:
        path: a model directory, run directory or any other source.
        against: the source that it was made from, in any format.
        atol: largest absolute difference of outputs (on random inputs and on the text) and
            largest relative one of gradients that passes; computed in float32.
        text: a text to compare outputs on, too.
        gradients: also compare the gradient of every parameter.
        config: fields that are not in the files of `against` (or of `path`, without it), as given
            to `convert`.

    Returns:
        `ok`; `digests_ok` (None without a manifest); for JAX against PyTorch
        `max_abs_logit_diff`, `max_abs_logit_diff_on_text`, `argmax_agreement` (share of
        positions) and `max_gradient_diff`; for JAX against JAX of the source
        `max_abs_logit_diff_to_source` and `argmax_agreement_with_source` (each None if it was not
        computed); `tensors_compared`; `tensors_equal`; `max_abs_tensor_diff`; `problems`; `notes`.

    Raises:
        Problem: (corrupt) `path` does not exist, or `against` cannot be read; (usage) a text was
            given, but there is no tokeniser; or PyTorch is not installed, and there is nothing
            else to check (if there is, a note says what was not compared).
    """
    path = Path(path)
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    problems = digest_problems(path)
    if gradients or (problems is None and against is None):
        require("torch", "comparing with PyTorch")
    report = Report(
        ok=False,
        digests_ok=None if problems is None else not problems,
        **parity_fields(None),
        **source_parity_fields(None),
        tensors_compared=0,
        tensors_equal=0,
        max_abs_tensor_diff=None,
        problems=problems or [],
        notes=[],
    )
    if is_run(path):
        report["notes"] += _notes_on_run(path)
        report["problems"] += [] if problems else _not_finite(path / "checkpoints")
    if not report.problems:
        contents = None if against is None else recognise(Path(against))
        try:
            source = open_checkpoint(path, config=config if contents is None else None)
            reference = None if contents is None else _reference(contents, source, config or {})
            _compare(report, source, reference, atol, text, gradients)
        except Problem as problem:
            if problem.exit_code == USAGE:
                raise
            report["problems"].append(format_problem(problem))
    report["ok"] = not report.problems
    return report


def parity_fields(found: Parity | None) -> dict[str, float | None]:
    """The fields of a report on JAX against PyTorch; all None if nothing was compared."""
    return {
        "max_abs_logit_diff": found and found.random,
        "max_abs_logit_diff_on_text": found and found.text,
        "argmax_agreement": found and found.argmax,
        "max_gradient_diff": found and found.gradient,
    }


def source_parity_fields(found: Parity | None) -> dict[str, float | None]:
    """The fields of a report on JAX against JAX of the source."""
    return {
        "max_abs_logit_diff_to_source": found and max(found.random, found.text or 0.0),
        "argmax_agreement_with_source": found and found.argmax,
    }


def format_problem(problem: Problem) -> str:
    """A problem in one line: what, where and why."""
    return ": ".join(str(part) for part in (problem.what, problem.where, problem.why) if part)


def digest_problems(path: Path) -> list[str] | None:
    """Differences from the manifests at a path; None if there is no manifest.

    Of a run, every checkpoint has one, and the other files too once `train` came to its end.
    """
    steps = [path / "checkpoints" / str(step) for step in rundir.steps(path / "checkpoints")]
    folders = [path, *steps] if (path / MANIFEST).is_file() else steps
    loose = file_damage(path)
    if not folders and loose is None:
        return None
    return [
        *(loose or []),
        *(
            f"checkpoint {folder.name}: {line}" if folder != path else line
            for folder in folders
            for line in _problems(folder)
        ),
    ]


def _problems(folder: Path) -> list[str]:
    """What is wrong with a folder that has a manifest; a checkpoint is kept from pruning while it
    is read, and nothing is wrong with one that was removed before."""
    if folder.exists() and not is_step(folder):
        return damage(folder)
    held = hold(folder)
    found = unsound(folder)
    found += rundir.changed_since(folder)
    if held is not None:
        held.close()
    return found if folder.exists() else []


def _not_finite(checkpoints: Path) -> Iterator[str]:
    for step in rundir.steps(checkpoints):
        if odd := not_finite(checkpoints / str(step)):
            yield f"checkpoint {step}: {odd}"


def _notes_on_run(run: Path) -> Iterator[str]:
    if not sealed(run):
        why = "no call of `train` came to its end here, or one is running"
        yield f"only the checkpoints were checked: {why}"
    if strays := rundir.strays(run / "checkpoints"):
        yield f"checkpoints/ also holds what is not a checkpoint: {', '.join(strays)}"


def but_for_the_card(problems: list[str] | None) -> list[str] | None:
    """The problems without those of the model card, which people may edit."""
    return problems and [line for line in problems if not line.startswith(f"{CARD} is damaged")]


def compare_tensors(report: Report, source: Checkpoint, reference: Checkpoint) -> None:
    """Compares every tensor under our paths; a dtype that was rounded may differ by its step."""
    largest = 0.0
    for path, tensor in source.tensors.items():
        theirs = reference.tensors.get(path)
        if theirs is None or theirs.shape != tensor.shape:
            report["problems"].append(f"{path} is not the same parameter on both sides")
            continue
        ours, other = tensor.read(), theirs.read()
        result = compare(ours, other)
        report["tensors_compared"] += 1
        report["tensors_equal"] += result["equal"]
        largest = max(largest, result["max_abs"])
        narrow = min(tensor.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
        coarse, other_coarse = (c.quantised | c.packed.keys() for c in (source, reference))
        if path in coarse - other_coarse:
            wrong = misrounded_in(source, path, reference)
        else:
            wrong = not compare(ours.astype(narrow), other.astype(narrow))["equal"]
        if wrong:
            report["problems"].append(f"{path} differs by up to {result['max_abs']:.3g}")
    report["max_abs_tensor_diff"] = largest


def misrounded_in(written: Checkpoint, path: str, source: Checkpoint) -> bool:
    """Whether a parameter (our path) is further from its source than its rounding explains."""
    exact, kept = source.tensors[path], written.tensors[path]
    if path not in written.quantised and path not in written.packed:
        return misrounded(exact.read(), kept.read())
    pair = next(pair for pair in written.pairs if pair.ours == path)
    if path in written.packed:
        return packed_wrong(written.packed[path], pair.export(exact).read())
    return misrounded(pair.export(exact).read(), pair.export(kept).read(), blocks=True)


def _reference(
    contents: RawCheckpoint, source: Checkpoint, config: Mapping[str, Any]
) -> Checkpoint:
    """What a checkpoint was made from, as a model of the same architecture.

    What it cannot say (the head count, for example, or which weights) is taken from the checkpoint.
    """
    values, config = values_of(source.config), as_in(source.origin, contents, config)
    if jaxmodels.arch(source.arch).PART_OF:
        try:
            known = {f"{source.arch}.{name}": value for name, value in values.items()}
            larger = bind(contents, config=config, conventions=known)
        except Problem:
            pass
        else:
            return part_of(larger, source.arch)
    return bind(contents, source.arch, config, conventions=values)


def _compare(
    report: Report,
    source: Checkpoint,
    reference: Checkpoint | None,
    atol: float,
    text: str | None,
    gradients: bool,
) -> None:
    if reference is not None:
        compare_tensors(report, source, reference)
    if installed("torch"):
        between = compare_outputs(source, None, text, gradients)
        report |= parity_fields(between)
        report["problems"] += between.complaints("JAX and PyTorch", atol)
    else:
        report["notes"].append(
            "not compared with PyTorch, which is not installed: pip install 'jaxmodels[torch]'"
        )
    if reference is not None:
        other = compare_outputs(source, reference, text)
        report |= source_parity_fields(other)
        # Outputs of rounded weights differ by what rounding did; the tensors were judged above.
        if report.tensors_equal == report.tensors_compared:
            report["problems"] += other.complaints("it and the source", atol)
