"""README's first ten minutes, as a person types them: `python -m tests.docs.first_hour --full`.

Runs the commands in order, in processes of their own and an empty folder, and compares what they
print with `commands.FIRST_HOUR`. It needs nothing but the standard library and an environment with
`jaxmodels[torch]`, so it also tries a new installation. Without --full the model is tiny.
"""

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.docs.commands import FIRST_HOUR, Shown
from tests.docs.pages import README, blocks

SECTION = "The first ten minutes"
INTERRUPTED = 130
PYTHON = Shown(r"^The value of.")


def program() -> list[str]:
    """The command of this environment."""
    script = Path(sys.executable).with_name("jaxmodels")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "jaxmodels"]


def called(words: list[str], folder: Path, interrupt: bool = False) -> tuple[int, str]:
    """Exit code and output of a process; `interrupt` presses Ctrl-C after the first step."""
    process = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if interrupt and line.startswith("step 1/"):
            process.send_signal(signal.SIGINT)
    return process.wait(), "".join(lines)


def walk(folder: Path, full: bool = False) -> None:
    """Runs the section's blocks in the folder.

    Raises:
        SystemExit: a command ends otherwise, or prints something else, than README says.
    """
    for block in (block for block in blocks(README) if block.section == SECTION):
        if block.language == "python":
            _expect("python", PYTHON, 0, *called([sys.executable, "-c", block.text], folder))
            continue
        for command, comment in block.lines:
            shown = FIRST_HOUR[command]
            typed = command if full else _smaller(command, folder)
            print(f"$ {typed}", flush=True)
            interrupt = "Ctrl-C" in comment
            result = called([*program(), *shlex.split(typed)[1:]], folder, interrupt)
            _expect(command, shown, INTERRUPTED if interrupt else 0, *result)


def _smaller(command: str, folder: Path) -> str:
    """What stands for it in a test."""
    smaller = FIRST_HOUR[command].smaller or command
    if "{longer}" not in smaller:
        return smaller
    summary = json.loads((folder / "runs" / "first" / "summary.json").read_text())
    return smaller.format(longer=summary["step"] + 5)


def _expect(command: str, shown: Shown, wanted: int, code: int, output: str) -> None:
    if code != wanted:
        sys.exit(f"{command}\nended with {code}, not {wanted}:\n{output}")
    if not re.search(shown.pattern, output, re.MULTILINE):
        sys.exit(f"{command}\ndid not print {shown.pattern!r}:\n{output}")


def main() -> None:
    """Walks through a new folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="README's own model: ten minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        walk(Path(folder), options.full)
    print("all as README says")


if __name__ == "__main__":
    main()
