"""Reads back what a conversion wrote, before it gets its name."""

from concurrent.futures import ThreadPoolExecutor

from bridge.checkpoint.config import values_of
from bridge.checkpoint.opening import Checkpoint
from bridge.checks.parity import Parity, agreement
from bridge.checks.verification import Wishes, misrounded_in
from bridge.conversion.plan import PYTORCH, ConversionPlan
from bridge.core import table
from bridge.core.moments import Moments, required
from bridge.core.tensors import digest_of
from bridge.formats.raw import RawCheckpoint, check
from jaxmodels.errors import UNVERIFIED, Problem

CHECKS = ("none", "digest", "roundtrip", "logits")
ATOL = 1e-4
# How many tensors are checked at once, of formats that are read in small pieces.
_READERS = dict.fromkeys(PYTORCH, 2)


def check_written(
    contents: RawCheckpoint,
    source: Checkpoint,
    plan: ConversionPlan,
    written: Checkpoint,
    moments: Moments | None,
    level: str,
    wishes: Wishes = (None, False),
) -> tuple[Parity | None, Parity | None]:
    """Checks a new folder before it gets its name.

    Args:
        contents: what was written.
        source: what it was made from.
        plan: how.
        written: the same as a model.
        moments: the optimiser's state that was carried along, under our paths.
        level: one of `CHECKS`; see `bridge.convert`.
        wishes: text and gradients; see `bridge.verify`.

    Returns:
        how far JAX and PyTorch are apart, None below "logits"; and how far what was written is
        from the source in its own precision, None too where nothing was rounded.

    Raises:
        Problem: (verification) something is not as it should be.
    """
    if level == "none":
        return None, None
    problems: list[str] = []
    found = from_source = None
    if level == "digest":
        with ThreadPoolExecutor(_READERS.get(contents.format, 1)) as readers:
            list(readers.map(check, contents.tensors.values()))
    else:
        problems += [
            f"{path} does not come back as it was"
            for path, tensor in written.tensors.items()
            if digest_of(tensor.read()) != digest_of(plan.ours[path].read())
        ]
        problems += [
            f"{path} is further from its source than rounding takes it"
            for path, error in plan.errors.items()
            if error and misrounded_in(written, path, source)
        ]
    if moments is not None:
        problems += _moment_problems(moments, required(written.moments(), contents.path))
    if level in ("roundtrip", "logits"):
        problems += [
            f"the config does not come back as it was: {name}"
            for name in changed_fields(source, written)
            if name not in written.assumed
        ]
    if level == "logits" and not problems:
        found = agreement(written, None, *wishes)
        problems += found.complaints("JAX and PyTorch", ATOL)
        if any(plan.errors.values()):  # else the tensors are the source's, bit for bit
            from_source = agreement(written, source, wishes[0])
    if problems:
        raise Problem(
            "the output does not read back as it was written; it was removed",
            why=table.listing(problems),
            fix="check the disk and try again",
            exit_code=UNVERIFIED,
        )
    return found, from_source


def changed_fields(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Fields in which the configs of two models of one architecture differ."""
    other = values_of(b.config)
    return [name for name, value in values_of(a.config).items() if other[name] != value]


def _moment_problems(moments: Moments, written: Moments) -> list[str]:
    problems = [] if moments.count == written.count else ["the optimiser's count is wrong"]
    for held, found in ((moments.mu, written.mu), (moments.nu, written.nu)):
        problems += [
            f"the moments of {path} do not come back as they were"
            for path, tensor in held.items()
            if digest_of(tensor.read()) != digest_of(found[path].read())
        ]
    return problems
