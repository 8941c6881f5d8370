"""`jaxmodels memory`: what a bitgen remembers. Written, read, forgotten and listed in a model
directory, whose memory it changes and nothing else."""

import difflib

from jaxmodels.cli import emit, merge_repeated, parse, show
from jaxmodels.commands.memory_options import Forget, List, Read, Write
from jaxmodels.errors import USAGE, Problem

USAGE_TEXT = """usage: jaxmodels memory ACTION PATH [options]      (ACTION --help lists them)

  write    remember texts, images, images with captions
  read     what is nearest to a text or an image, or "never written"
  forget   take items out again
  list     all items, and where they came from"""

ACTIONS = {
    "write": (Write, "write"),
    "read": (Read, "read"),
    "forget": (Forget, "forget"),
    "list": (List, "list_"),
}


def main(argv: list[str]) -> int:
    """Runs one of the actions."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE_TEXT)
        return 0 if argv else USAGE
    action, words = argv[0], argv[1:]
    if action not in ACTIONS:
        near = difflib.get_close_matches(action, ACTIONS, n=1)
        raise Problem(
            f"unknown action: {action!r}",
            why=f"known: {', '.join(ACTIONS)}",
            fix=f"did you mean {near[0]}?" if near else "see `jaxmodels memory --help`",
            exit_code=USAGE,
        )
    if action == "write":
        for option in ("--text", "--image", "--caption"):
            words = merge_repeated(words, option, many=True)
    kind, function = ACTIONS[action]
    options = parse(kind, words, f"memory {action}")
    from jaxmodels.commands import memory_actions
    from jaxmodels.runtime import platform

    platform.prepare()
    result, lines = getattr(memory_actions, function)(options)
    if options.json:
        emit(result)
    else:
        show(*lines)
    return 0
