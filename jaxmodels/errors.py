"""Errors that a user can act on: what, where, why, what to do, and the exit code."""

from math import inf, isfinite

# Exit codes of the command, a contract with the scripts that call it.
DONE, INTERNAL, USAGE, CORRUPT, UNSAFE, MISMATCH, EXISTS, NO_SPACE, UNVERIFIED, NETWORK = range(10)
STOPPED, INTERRUPTED, UNREAD = 75, 130, 141


class Problem(Exception):
    """An error that the command prints as one short block instead of a traceback.

    Any exception with these attributes is printed the same way, so packages that do not import
    this one (data_pipelines) can raise their own.

    Args:
        what: what went wrong, in one sentence.
        where: the file, field or tensor concerned.
        why: the cause, if known.
        fix: what the user can do now.
        exit_code: one of the codes above.
    """

    def __init__(
        self, what: str, *, where: str = "", why: str = "", fix: str = "", exit_code: int = CORRUPT
    ):
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, str(where), why, fix
        self.exit_code = exit_code


def within(
    name: str,
    value: float | int | None,
    low: float | int,
    high: float | int = inf,
    *,
    below: bool = False,
) -> None:
    """Refuses a setting outside of [low, high], or of [low, high) with `below`; None passes.

    Raises:
        Problem: (usage) the value is outside, infinite or not a number.
    """
    if value is None:
        return
    if not isfinite(value):
        limit = "a finite number"
    elif high == inf:
        limit = f"at least {low}"
    else:
        limit = f"at least {low} and less than {high}" if below else f"between {low} and {high}"
    if not isfinite(value) or not low <= value <= high or (below and value == high):
        raise Problem(f"{name} must be {limit}, not {value}", exit_code=USAGE)


LARGEST_SEED = 2**31 - 1
"""Random keys are made from int32 numbers."""
