"""What the verbs of the command share: parsing, talking to the user, asking a file's manners.

Standard output carries results (text or one JSON object); everything else goes to standard
error, so that output can be piped.
"""

import json
import os
import sys
from typing import Any


def parse(args: Any, argv: list[str], verb: str, default: Any = None) -> Any:
    """Fills the dataclass `args` from the command line; wrong usage exits with code 2."""
    import tyro

    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        args, args=argv, prog=f"jaxmodels {verb}", config=(tyro.conf.FlagCreatePairsOff,), **kwargs
    )


def gathered(argv: list[str], option: str, many: bool = False) -> list[str]:
    """Joins an option that is repeated into one, with all of its values, at the end.

    With `many` an option takes all words up to the next one.
    """
    rest: list[str] = []
    values: list[str] = []
    taking = False
    for word in argv:
        taking = taking and word[:1] != "-"
        if values and values[-1] == option:
            values[-1], taking = word, many
        elif (
            taking
            or word == option
            or (values and option == "--set" and word[:1] != "-" and "=" in word)
        ):
            values.append(word)
        else:
            rest.append(word)
    return [*rest, option, *values] if values else rest


_hushed = False


def hush(on: bool) -> None:
    """Turns `say` off or on: of several processes that train together, one talks."""
    global _hushed
    _hushed = on


def say(*lines: str) -> None:
    """Prints to standard error, at once."""
    if not _hushed:
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def emit(result: dict[str, Any] | list[Any]) -> None:
    """Prints one JSON object to standard output; the answer to `--json`."""
    print(json.dumps(result), flush=True)


def fail(problem: BaseException) -> int:
    """Shows an error as one short block and returns its exit code.

    Any exception that has `what`, `where`, `why`, `fix` and `exit_code` is shown this way.
    """
    red, plain = ("\033[1;31m", "\033[0m") if _colour() else ("", "")
    block = [f"{red}error:{plain} {getattr(problem, 'what', problem)}"]
    for label in ("where", "why", "fix"):
        if text := getattr(problem, label, ""):
            indented = str(text).replace("\n", "\n" + " " * 9)
            block.append(f"  {label + ':':<6} {indented}")
    hush(False)
    say(*block)
    return int(getattr(problem, "exit_code", 1))


def _colour() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
