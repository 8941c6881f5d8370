"""The completion scripts, run by the shells themselves where they are installed."""

import re
import shutil
import subprocess
from contextlib import suppress

import pytest

from jaxmodels.__main__ import VERBS, main
from jaxmodels.commands import completion


@pytest.fixture(scope="module")
def script():
    return completion.bash()


def complete(script, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _jaxmodels; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_bash_completes_verbs_presets_and_options(script):
    assert complete(script, "jaxmodels", "tr") == ["train"]
    assert complete(script, "jaxmodels", "train", "charlm:n") == ["charlm:notebook"]
    assert complete(script, "jaxmodels", "train", "charlm:tiny", "--save-m") == ["--save-minutes"]
    assert complete(script, "jaxmodels", "data", "pre") == ["prepare"]


def test_every_verb_has_options(script):
    for verb in VERBS.keys() - completion.SUBCOMMANDS.keys():
        assert completion.flags_of(verb), verb


@pytest.mark.parametrize("verb", ["data", "memory"])
def test_actions_are_those_of_the_verb(verb, capsys):
    with suppress(SystemExit):
        main([verb, "--help"])
    page = capsys.readouterr().out
    assert all(re.search(rf"\b{action}\b", page) for action in completion.words_of(verb))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "charlm:notebook" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", script], check=True)


def test_bash_leaves_files_to_the_shell(script):
    """Which quotes a name such as "my run"."""
    assert complete(script, "jaxmodels", "convert", "") == []
    assert complete(script, "jaxmodels", "train", "charlm:tiny", "--out", "my") == []
    shown = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p jaxmodels"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-o default" in shown.stdout


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_verbs_presets_options_and_files(tmp_path):
    (tmp_path / "checkpoint.pt").touch()

    lines = ("tra", "train charlm:n", "train charlm:tiny --save-mi", "convert check")
    ask = "\n".join(f"complete -C 'jaxmodels {line}'" for line in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{completion.fish()}\n{ask}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    found = [row.split("\t")[0] for row in done.stdout.splitlines()]
    assert found == ["train", "charlm:notebook", "--save-minutes", "checkpoint.pt"]
