"""Our commands in processes of their own, as a user runs them."""

import json
import subprocess
import sys
import time
from typing import Any

from jaxmodels.errors import INTERNAL, Problem


def command(*words: str) -> str:
    """What `jaxmodels WORDS` prints on standard output.

    Raises:
        Problem: it failed, with its exit code; the command has printed why.
    """
    done = subprocess.run(
        [sys.executable, "-m", "jaxmodels", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise Problem(
            "a command ended early",
            where=f"jaxmodels {' '.join(words)}",
            fix="see its message above",
            exit_code=done.returncode if done.returncode > 0 else INTERNAL,
        )
    return done.stdout


def timed(*words: str) -> float:
    """Runs a command; its total seconds, startup included. Raises as `command`."""
    began = time.monotonic()
    command(*words)
    return round(time.monotonic() - began, 1)


def measured(*words: str) -> dict[str, Any]:
    """The JSON object that a command prints with --json. Raises as `command`."""
    found: dict[str, Any] = json.loads(command(*words, "--json"))
    return found
