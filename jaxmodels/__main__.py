"""The command `jaxmodels VERB`. Dispatches by name and imports only what the verb needs."""

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import jaxmodels
from jaxmodels.cli import fail, refuse_empty_paths, say
from jaxmodels.errors import INTERRUPTED, NO_SPACE, UNREAD, USAGE, Problem
from jaxmodels.explain import explain
from jaxmodels.terminal import OutputLost, Stream, resilient_output

# verb → (module:function that runs it, what it does)
VERBS = {
    "list": ("jaxmodels.commands.list:main", "architectures and presets, with their sizes"),
    "train": ("jaxmodels.commands.train:main", "train a preset; stop, resume, never lose work"),
    "plan": (
        "jaxmodels.commands.plan:main",
        "does it fit on TPUs or GPUs, how fast can it be? without any",
    ),
    "eval": (
        "jaxmodels.commands.eval:main",
        "loss, perplexity, bits per character; how well images and captions find each other",
    ),
    "generate": ("jaxmodels.commands.generate:main", "continue a prompt, caption an image"),
    "memory": ("jaxmodels.commands.memory:main", "what a bitgen remembers: write, read, forget"),
    "report": ("jaxmodels.commands.report:main", "a run as one HTML page"),
    "convert": ("bridge.commands.convert:convert_main", "move a checkpoint between formats"),
    "inspect": (
        "bridge.commands.checks:inspect_main",
        "describe a checkpoint, without executing anything",
    ),
    "verify": (
        "bridge.commands.checks:verify_main",
        "check digests, and numbers against PyTorch or a source",
    ),
    "diff": ("bridge.commands.checks:diff_main", "compare two checkpoints tensor by tensor"),
    "push": ("bridge.commands.hub:push_main", "publish a model on the Hugging Face hub"),
    "pull": ("bridge.commands.hub:pull_main", "download a checkpoint from the hub and check it"),
    "data": ("data_pipelines.command:main", "list, prepare and inspect training data"),
    "bench": ("benchmarks.command:main", "measure speed, memory and quality against named peers"),
    "completion": (
        "jaxmodels.commands.completion:main",
        "a script that completes verbs, presets and options in bash, zsh or fish",
    ),
    "doctor": ("jaxmodels.commands.doctor:main", "versions, devices, disk: is this machine ready?"),
}

USAGE_TEXT = "\n".join(
    [
        "usage: jaxmodels VERB [options]      (jaxmodels VERB --help lists them)",
        "",
        *(f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()),
        "",
        "  --debug    show a traceback when something fails",
        "  --version  show the version",
    ]
)


ON_DISK = {"train", "convert", "data", "bench", "report", "push", "pull", "memory"}
"""Verbs whose result is on disk: they continue when nobody reads their output any more."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code (0 done, 2 usage, …: jaxmodels/errors.py)."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def guarded(run: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Runs a command; errors become a short message and an exit code.

    Args:
        run: takes the arguments, returns an exit code.
        argv: the arguments; with `--debug` errors are raised, with their traceback.
    """
    with resilient_output(needed=not ON_DISK & set(argv[:1])) as output:
        try:
            try:
                code = run([word for word in argv if word != "--debug"])
            except SystemExit as end:  # of the option parser: help, or wrong usage
                output.flush()
                if end.code or output.lost is None:
                    raise
                code = 0
            output.flush()  # a failed write is an error now, not while Python exits
            return code or _output_code(output)
        except KeyboardInterrupt:
            say("interrupted")
            return _left(INTERRUPTED)
        except OutputLost as lost:
            return _left(_no_space(lost) if lost.full else UNREAD)
        except Exception as error:
            if "--debug" in argv:
                raise
            return _left(fail(explain(error)))


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE_TEXT)
        return 0 if argv else USAGE
    if argv[0] in ("-V", "--version"):
        print(f"jaxmodels {jaxmodels.__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=2)
        raise Problem(
            f"unknown verb: {verb!r}",
            why=f"known: {', '.join(VERBS)}",
            fix=f"did you mean {' or '.join(near)}?" if near else "see `jaxmodels --help`",
            exit_code=USAGE,
        )
    module, _, function = VERBS[verb][0].partition(":")
    with refuse_empty_paths():
        return int(getattr(import_module(module), function)(argv[1:]) or 0)


def _left(code: int) -> int:
    """The exit code of a failure; a process that trains with others ends here."""
    if processes := sys.modules.get("jaxmodels.runtime.multihost.processes"):
        processes.leave(code)
    return code


def _output_code(output: Stream) -> int:
    """The exit code of a verb that did its work: was there space for its output?"""
    lost = output.lost
    return _no_space(lost, "; the work itself is done") if lost and lost.full else 0


def _no_space(lost: OutputLost, done: str = "") -> int:
    return fail(
        Problem(
            f"there is no space for the output{done}",
            why=str(lost.error),
            fix="free some space, or send the output elsewhere",
            exit_code=NO_SPACE,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
