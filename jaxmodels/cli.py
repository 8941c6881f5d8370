"""What the commands share: parsing arguments and printing.

Standard output carries results (text or one JSON object); everything else goes to standard
error, so that output can be piped.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmodels.errors import USAGE, Problem


def parse(args: Any, argv: list[str], verb: str, default: Any = None) -> Any:
    """Fills the dataclass `args` from the command line; wrong usage exits with code 2."""
    if {"-h", "--help"} & set(argv):
        from jaxmodels.option_help import page

        print(page(f"jaxmodels {verb}", args, default))
        raise SystemExit(0)
    import tyro

    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    # A switch has both forms, --x and --no-x: a command that is repeated to resume must be read the
    # same, though the run's settings are the defaults then.
    return tyro.cli(args, args=argv, prog=f"jaxmodels {verb}", **kwargs)


@contextmanager
def refuse_empty_paths() -> Iterator[None]:
    """Within its block an empty path is an error: `--out "$RUN"` without RUN would otherwise mean
    the current folder, and with `--force` replace it.
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    def read(words: list[str]) -> Path:
        if not words[0]:
            raise Problem(
                "a path is empty",
                fix='give one; is a shell variable not set? "." is the current folder',
                exit_code=USAGE,
            )
        return Path(words[0])

    @registry.primitive_rule
    def rule(info: Any) -> Any:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    with registry:
        yield


def merge_repeated(argv: list[str], option: str, many: bool = False) -> list[str]:
    """Merges a repeated option into one at the end, with all of its values.

    With `many` an option takes all words up to the next option.
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


def refuse_repeated(argv: list[str], option: str, fix: str) -> None:
    """Refuses an option that is given twice: the parser would silently take the last.

    Raises:
        Problem: (usage) with `fix`.
    """
    times = sum(word == option or word.startswith(option + "=") for word in argv)
    if times > 1:
        raise Problem(f"{option} is given {times} times", fix=fix, exit_code=USAGE)


_hushed = False


def hush(on: bool) -> None:
    """Turns `say` off or on: of several processes that train together, only one prints."""
    global _hushed
    _hushed = on


def visible(text: Any, keep: str = "") -> str:
    """The text with unprintable characters (control, bidirectional, surrogates) escaped as in
    Python, `\\x1b`: names in files are untrusted.

    Args:
        text: what to print.
        keep: characters that are not escaped.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def escape_control(text: str) -> str:
    """A model's output for a terminal: only control characters and surrogates are escaped."""
    steering = (c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Cs"))
    return text.translate({ord(c): ascii(c)[1:-1] for c in steering})


def show(*lines: Any) -> None:
    """Prints a result for people to standard output, unprintable characters escaped."""
    for line in lines:
        print(visible(line, keep="\n"))


def say(*lines: str) -> None:
    """Prints to standard error and flushes, unprintable characters escaped."""
    if not _hushed:
        print(*(visible(line, keep="\n") for line in lines), sep="\n", file=sys.stderr, flush=True)


def in_bytes(count: int) -> str:
    """A number of bytes for people: 812 bytes, 106.6 kB, 3.4 GB (decimal, as disks are sold)."""
    if count < 1000:
        return f"{count} bytes"
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def emit(result: dict[str, Any] | list[Any]) -> None:
    """Prints one JSON object to standard output, for `--json`."""
    print(json.dumps(result), flush=True)


def fail(problem: BaseException) -> int:
    """Prints an error as one short block and returns its exit code.

    Works for any exception that has `what`, `where`, `why`, `fix` and `exit_code`.
    """
    red, plain = ("\033[1;31m", "\033[0m") if _colour() else ("", "")
    block = [str(getattr(problem, "what", problem))]
    for label in ("where", "why", "fix"):
        if text := getattr(problem, label, ""):
            indented = str(text).replace("\n", "\n" + " " * 9)
            block.append(f"  {label + ':':<6} {indented}")
    hush(False)
    print(f"{red}error:{plain} ", end="", file=sys.stderr)
    say(*block)
    return int(getattr(problem, "exit_code", 1))


def _colour() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
