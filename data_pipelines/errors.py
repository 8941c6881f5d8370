"""Errors that a user can act on: what, where, why, what to do, and the exit code."""

# Exit codes of the command (those that data can cause).
USAGE, CORRUPT, UNSAFE, MISMATCH, EXISTS, NO_SPACE = 2, 3, 4, 5, 6, 7


class DataProblem(ValueError):
    """An error in the data or in a request for it; the command prints it as one short block.

    Args:
        what: what went wrong, in one sentence.
        where: the file, byte or field.
        why: the cause, if known.
        fix: what the user can do.
        exit_code: one of the codes above.
    """

    def __init__(
        self, what: str, *, where: str = "", why: str = "", fix: str = "", exit_code: int = CORRUPT
    ):
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, str(where), why, fix
        self.exit_code = exit_code

    def __str__(self) -> str:
        return " · ".join(part for part in (self.what, self.where, self.why, self.fix) if part)
