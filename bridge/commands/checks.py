"""The verbs inspect, verify and diff. Heavy imports wait until a verb really runs."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from bridge.commands.options import Settings, show_agreement, with_weights
from jaxmodels.cli import emit, in_bytes, merge_repeated, parse, show
from jaxmodels.errors import CORRUPT, DONE, UNSAFE, UNVERIFIED
from jaxmodels.runtime.platform import silence_storage


@dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint is and what is wrong with it. Executes nothing in it.

    Exit code 0: it can be read (see the problems); 3: it cannot, or is damaged, or its files
    contradict each other; 4: it asks to run code, and was refused.
    """

    path: Positional[Path]
    """Any file or folder."""
    tensors: bool = False
    """List every tensor."""
    arch: str | None = None
    """The architecture, if the files do not say it."""
    set: Settings = ()
    """Settings that the files lack, such as heads=4."""
    weights: Literal["ema", "raw"] | None = None
    """Of a run that keeps a running average of its weights: ema, the average, or raw, what it
    trains. By default raw, with a note that both are there."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Verify:
    """Check digests, and JAX against PyTorch; with --against, every tensor of the source too.

    Exit code 0: all is right; 8: something is not, and it is named.
    """

    path: Positional[Path]
    """Model directory or run directory."""
    against: Path | None = None
    """The source that it was converted from."""
    set: Settings = ()
    """Settings that the source (without --against, PATH) lacks, as given to `convert`."""
    weights: Literal["ema", "raw"] | None = None
    """Of a run that keeps a running average of its weights: ema, the average, or raw, what it
    trains. By default those that PATH was made from, or ema."""
    atol: float = 1e-4
    """Tolerance: largest difference of outputs, and largest relative difference of gradients."""
    text: str | None = None
    """Compare outputs on this text too."""
    gradients: bool = False
    """Compare the gradient of every parameter too."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Diff:
    """Compare two checkpoints of any format, tensor by tensor, under our names.

    Exit code 0: the same values; 8: they differ.
    """

    a: Positional[Path]
    """One checkpoint."""
    b: Positional[Path]
    """The other."""
    set: Settings = ()
    """What neither of them can say, such as heads=4."""
    weights: Literal["ema", "raw"] | None = None
    """Of a run that keeps a running average of its weights: ema, the average, or raw, what it
    trains. By default those that the other one was made from, or ema."""
    json: bool = False
    """Print one JSON object."""


def inspect_main(argv: list[str]) -> int:
    """Runs `jaxmodels inspect`."""
    options = with_weights(parse(Inspect, merge_repeated(argv, "--set"), "inspect"))
    silence_storage()
    import bridge
    from bridge.checkpoint.config import parse_settings

    report = bridge.inspect(options.path, options.arch, parse_settings(options.set))
    if options.json:
        emit({k: v for k, v in report.items() if k != "listing" or options.tensors})
    else:
        _show_inspection(report, options.tensors)
    return UNSAFE if report.unsafe else CORRUPT if report.damaged else DONE


def verify_main(argv: list[str]) -> int:
    """Runs `jaxmodels verify`."""
    options = with_weights(parse(Verify, merge_repeated(argv, "--set"), "verify"))
    silence_storage()
    import bridge
    from bridge.checkpoint.config import parse_settings

    report = bridge.verify(
        options.path,
        options.against,
        options.atol,
        options.text,
        options.gradients,
        parse_settings(options.set),
    )
    if options.json:
        emit(report)
    else:
        digests = {True: "right", False: "wrong", None: "no manifest"}[report.digests_ok]
        show(f"digests: {digests}")
        show_agreement(report)
        if options.against:
            show(f"tensors equal: {report.tensors_equal} of {report.tensors_compared}")
        for note in report.notes:
            show(f"note: {note}")
        for problem in report.problems:
            show(f"problem: {problem}")
        show("verified" if report.ok else "NOT verified")
    return DONE if report.ok else UNVERIFIED


def diff_main(argv: list[str]) -> int:
    """Runs `jaxmodels diff`."""
    options = with_weights(parse(Diff, argv, "diff"))
    silence_storage()
    import bridge
    from bridge.checkpoint.config import parse_settings

    report = bridge.diff(options.a, options.b, config=parse_settings(options.set))
    if options.json:
        emit(report)
    else:
        a, b = report.arch
        if a != b:
            show(f"different architectures: {a} | {b}")
        for field, (a, b) in report.config.items():
            show(f"config {field}: {a} | {b}")
        for path, row in report.tensors.items():
            if row["status"] != "equal":
                show(f"{path}: {', '.join(f'{key} {value}' for key, value in row.items())}")
        equal = sum(row["status"] == "equal" for row in report.tensors.values())
        if report.tensors:
            show(f"{equal} of {len(report.tensors)} tensors are equal")
    return DONE if report.same else UNVERIFIED


def _shares(row: Mapping[str, Any]) -> str:
    """How many of a ternary tensor's weights are −1, 0 and 1."""
    if not (values := row.get("values")):
        return ""
    total = sum(values.values())
    shares = (f"{count / total:.1%} {value.replace('-', '−')}" for value, count in values.items())
    return f": {', '.join(shares)}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting and its value as --set takes it; those of a part of the model as part.name."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield prefix + name, json.dumps(list(value))
        else:
            yield prefix + name, "not set" if value is None else str(value)


def _show_inspection(report: Any, tensors: bool) -> None:
    for key in ("format", "arch", "preset", "tensors", "parameters", "bytes", "dtypes"):
        value = report[key]
        if key == "bytes" and value is not None:
            value = in_bytes(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{count} {dtype}" for dtype, count in value.items())
        value = f"{value:,}" if isinstance(value, int) else value or "unknown"
        show(f"{key + ':':<12} {value}")
    show(f"{'vocabulary:':<12} {'yes' if report.vocab_present else 'no'}")
    show(f"{'optimiser:':<12} {'yes' if report.optimizer else 'no'}")
    if report.averaged:
        show(f"{'weights:':<12} trained (raw), and their running average (ema)")
    for field, value in _flat(report.config):
        show(f"  {field} = {value}{'  (assumed)' if field in report.assumed else ''}")
    for row in report.listing if tensors else []:
        cut = "  cut off" if row.get("cut_off") else ""
        show(f"  {row['name']}  {tuple(row['shape'])}  {row['dtype']}{_shares(row)}{cut}")
    for kind in ("notes", "problems"):
        for line in report[kind]:
            show(f"{kind[:-1]}: {line}")
