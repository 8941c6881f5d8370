"""Checks that a checkpoint is what was written, and the same model on both sides."""

from pathlib import Path

import numpy as np

from bridge.configuration import values_of
from bridge.formats import recognise
from bridge.loading import model_of
from bridge.report import Report
from bridge.sources import Source, bind, open_source
from bridge.tensors import DTYPES, compare
from bridge.torch import module_of, twin
from jaxmodels.errors import Problem
from jaxmodels.runtime.files import MANIFEST, damage
from jaxmodels.runtime.rundir import changed_since

FLOAT32 = DTYPES["F32"]


def verify(path: str | Path, against: str | Path | None = None, atol: float = 1e-4) -> Report:
    """Checks digests, JAX against PyTorch, and (with `against`) every tensor and the outputs.

    Args:
        path: a model directory, run directory or any other source.
        against: the source that it was made from, in any format.
        atol: largest absolute difference of outputs that passes; computed in float32.

    Returns:
        `ok`; `digests_ok` (None where there is no manifest); `max_abs_logit_diff` (JAX against
        PyTorch) and `max_abs_logit_diff_to_source` (JAX against JAX of the source), None when
        they could not be computed or were not asked for; `tensors_compared`; `tensors_equal`;
        `max_abs_tensor_diff`; `problems`.

    Raises:
        Problem: (corrupt) `path` does not exist, or `against` cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    problems = digest_problems(path)
    report = Report(
        ok=False,
        digests_ok=None if problems is None else not problems,
        max_abs_logit_diff=None,
        max_abs_logit_diff_to_source=None,
        tensors_compared=0,
        tensors_equal=0,
        max_abs_tensor_diff=None,
        problems=problems or [],
    )
    if not report.problems:
        contents = None if against is None else recognise(Path(against))
        try:
            source = open_source(path)
            # What the source cannot say (the head count, say) is as its conversion says.
            reference = None
            if contents is not None:
                reference = bind(contents, source.arch, conventions=values_of(source.config))
            _compare(report, source, reference, atol)
        except Problem as problem:
            report["problems"].append(told(problem))
    report["ok"] = not report.problems
    return report


def told(problem: Problem) -> str:
    """A problem as one text: what, where and why."""
    return ": ".join(str(part) for part in (problem.what, problem.where, problem.why) if part)


def digest_problems(path: Path) -> list[str] | None:
    """What the manifests at a path contradict; None when there is no manifest.

    The model card may have been edited: it is prose, and asks for the licence to be filled in.
    """
    steps = [step for step in sorted(path.glob("checkpoints/*")) if step.name.isdecimal()]
    folders = [path, *steps] if (path / MANIFEST).is_file() else steps
    if not folders:
        return None
    return [
        f"{folder.name}: {line}" if folder != path else line
        for folder in folders
        for line in (*damage(folder), *changed_since(folder))
        if not line.startswith("README.md is damaged")
    ]


def compare_tensors(report: Report, source: Source, reference: Source) -> None:
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
        if not compare(ours.astype(narrow), other.astype(narrow))["equal"]:
            report["problems"].append(f"{path} differs by up to {result['max_abs']:.3g}")
    report["max_abs_tensor_diff"] = largest


def _compare(report: Report, source: Source, reference: Source | None, atol: float) -> None:
    if reference is not None:
        compare_tensors(report, source, reference)
    between = {"JAX and PyTorch": output_difference(source)}
    report["max_abs_logit_diff"] = between["JAX and PyTorch"]
    if reference is not None:
        report["max_abs_logit_diff_to_source"] = output_difference(source, reference)
        # Outputs of rounded weights differ by what rounding did; the tensors were judged above.
        if report.tensors_equal == report.tensors_compared:
            between["it and the source"] = report.max_abs_logit_diff_to_source
    for sides, difference in between.items():
        if not difference <= atol:
            report["problems"].append(f"outputs of {sides} differ by {difference:.3g} > {atol:g}")


def output_difference(source: Source, reference: Source | None = None) -> float:
    """Largest absolute difference of outputs on random inputs, in float32.

    JAX against the PyTorch twin of the same source, or JAX against JAX of the reference.
    """
    side = twin(source.arch)
    inputs = side.example(source.config)
    ours = side.jax_outputs(model_of(source, FLOAT32), inputs)
    if reference is None:
        other = side.torch_outputs(module_of(source).float(), inputs)
    else:
        other = side.jax_outputs(model_of(reference, FLOAT32), inputs)
    return float(np.abs(ours - other).max())
