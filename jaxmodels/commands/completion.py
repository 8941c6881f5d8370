"""`jaxmodels completion`: a script that completes verbs, presets and options in a shell."""

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

import jaxmodels
from jaxmodels.cli import parse

TAKES_PRESET = ("train", "plan", "list")
SUBCOMMANDS = {
    "data": "list prepare inspect tokenizer bench",
    "memory": "write read forget list",
    "completion": "bash zsh fish",
}

BASH = """\
_jaxmodels() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}} flags words
  case $verb in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$current"))
  elif [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$current"))
  elif [ "$COMP_CWORD" -eq 2 ] && [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=()  # the shell completes files, and quotes their names
  fi
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//:/}}  # a preset is one word
complete -o default -F _jaxmodels jaxmodels
"""


@dataclass(frozen=True)
class Completion:
    """Print a script that completes verbs, presets and options.

    bash: add `source <(jaxmodels completion bash)` to ~/.bashrc; zsh: the same with zsh, in
    ~/.zshrc; fish: jaxmodels completion fish > ~/.config/fish/completions/jaxmodels.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""


def main(argv: list[str]) -> int:
    """Prints the script."""
    shell = parse(Completion, argv, "completion").shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](), end="")
    return 0


def bash() -> str:
    """The script for bash."""
    from jaxmodels.__main__ import VERBS

    cases = "\n".join(
        f"    {verb}) flags='{' '.join(flags_of(verb))}' words='{' '.join(words_of(verb))}' ;;"
        for verb in VERBS
    )
    return BASH.format(cases=cases, verbs=" ".join(VERBS))


def zsh() -> str:
    """The script for zsh, which runs that for bash."""
    return (
        "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
        + bash()
    )


def fish() -> str:
    """The script for fish."""
    from jaxmodels.__main__ import VERBS

    lines = []
    for verb, (_, what) in VERBS.items():
        about = what.replace("'", "")
        lines.append(f"complete -c jaxmodels -n __fish_use_subcommand -f -a {verb} -d '{about}'")
        seen = f"complete -c jaxmodels -n '__fish_seen_subcommand_from {verb}'"
        if words := words_of(verb):
            lines.append(f"{seen} -a '{' '.join(words)}'")
        lines += [f"{seen} -l {flag.removeprefix('--')}" for flag in flags_of(verb)]
    return "\n".join(lines) + "\n"


def flags_of(verb: str) -> list[str]:
    """The options of a verb, as its help lists them."""
    from jaxmodels.__main__ import main as run

    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        run([verb, "--help"])
    return [*dict.fromkeys(re.findall(r"^[ │]*(--[\w.-]+)", page.getvalue(), re.MULTILINE))]


def words_of(verb: str) -> list[str]:
    """The words that may follow a verb, other than paths."""
    if verb not in TAKES_PRESET:
        return SUBCOMMANDS.get(verb, "").split()
    return [f"{arch}:{name}" for arch in jaxmodels.ARCHS for name in jaxmodels.arch(arch).PRESETS]
