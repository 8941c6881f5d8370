"""Errors that a user can act on: what, where, why, what to do, and the exit code."""

# Exit codes of the command, a contract with the scripts that call it.
DONE, INTERNAL, USAGE, CORRUPT, UNSAFE, MISMATCH, EXISTS, NO_SPACE, UNVERIFIED, NETWORK = range(10)
STOPPED, INTERRUPTED = 75, 130


class Problem(Exception):
    """An error that ends the command with one short block instead of a traceback.

    Any exception with these attributes is shown the same way, so that packages that
    do not import this one (data_pipelines) can raise their own.

    Args:
        what: what went wrong, in one sentence.
        where: the file, field or tensor that it concerns.
        why: the cause, when it is known.
        fix: what the user can do now.
        exit_code: one of the codes above.
    """

    def __init__(
        self, what: str, *, where: str = "", why: str = "", fix: str = "", exit_code: int = CORRUPT
    ):
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, str(where), why, fix
        self.exit_code = exit_code
