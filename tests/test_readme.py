"""Every command and snippet of README.md runs as it stands there, in the form that people see.

A command that is new in README.md fails here until a line of the tables says what it shows.
"""

import io
import json
import re
import shlex
import shutil
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from transformers import Dinov2Config, Dinov2Model

from jaxmodels.__main__ import VERBS, main
from jaxmodels.errors import DONE
from tests.jaxmodels.helpers import SMALL

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What each command of a block shows people.
SHOWS = {
    "jaxmodels train charlm:notebook --data text:books/ --out runs/books --max-hours 8.5": (
        r"step 1/4  loss \d\.\d{4}  compiled\n(.*\n)*done: step 4 of 4"
    ),
    "jaxmodels train --out runs/books": r"resumed from checkpoint 4\n(.*\n)*done: step 4 of 4",
    'jaxmodels generate runs/books --prompt "It was" --temperature 0.8 --top-p 0.95': r"^It was.",
    "jaxmodels eval runs/books --data text:other.txt --valid-fraction 1": (
        r"^loss \d\.\d{4} nats per token, perplexity \d+\.\d{3}, \d\.\d{4} bits per token "
        r"and \d\.\d{4} per character, over [\d,]+ tokens$"
    ),
    "jaxmodels convert runs/books books-pytorch": r"^books-pytorch: charlm.* verified: digest\n",
    "jaxmodels verify books-pytorch --against runs/books": (
        r"largest logit difference.*\n(.*\n)*tensors equal: (\d+) of \2\nverified\n"
    ),
    'jaxmodels train charlm:notebook --data "mix:3*text:books/,1*jsonl:web.jsonl#body" '
    "--out runs/mixed": r"done: step 4 of 4",
    "jaxmodels convert runs/books books-pytorch --verify logits": r"verified: logits\n",
    "jaxmodels convert out/ckpt.pt gpt2 --to gpt2 --verify logits": r"verified: logits\n",
    "jaxmodels convert gpt2 gguf --to gguf --dtype q8_0": r"^gguf.*: wikigpt, .* verified: digest",
    "jaxmodels convert gpt2 again --to nanogpt": r"^again: wikigpt, .* verified: digest",
    "jaxmodels convert dinov2-small tower --verify logits": r"^tower: dinov2.* verified: logits",
    "jaxmodels convert tower back --to dinov2": r"^back: dinov2, .* verified: digest",
    "jaxmodels convert step_7.zip wigip --verify roundtrip": r"verified: roundtrip\n",
    "jaxmodels convert books-pytorch orbax --to orbax": r"^orbax: charlm.* verified: digest\n",
    "jaxmodels train --init gpt2 --lora rank=8,alpha=16 --data text:books --out runs/tuned": (
        r"done: step 2 of 2"
    ),
    "jaxmodels convert runs/tuned tuned": r"^tuned: wikigpt, .* verified: digest",
    "jaxmodels convert runs/tuned adapters --to peft": r"^adapters: wikigpt, .* verified: digest",
}
# What is too large for a test, and what is run in its place.
SMALLER = {
    "jaxmodels train --init gpt2 --lora rank=8,alpha=16 --data text:books --out runs/tuned": (
        "jaxmodels train wikigpt:tiny --init out/ckpt.pt --lora rank=8,alpha=16 --data text:books "
        + "--tokenizer letters.json --out runs/tuned "
        + " ".join([*SMALL, "--steps 2 --batch 2"])
    ),
    "jaxmodels train charlm:notebook --data text:books/ --out runs/books --max-hours 8.5": (
        "jaxmodels train charlm:tiny --data text:books/ --out runs/books --max-hours 8.5 "
        + " ".join([*SMALL, "--steps 4 --batch 4"])
    ),
    'jaxmodels train charlm:notebook --data "mix:3*text:books/,1*jsonl:web.jsonl#body" '
    "--out runs/mixed": (
        'jaxmodels train charlm:tiny --data "mix:3*text:books/,1*jsonl:web.jsonl#body" '
        "--out runs/mixed " + " ".join([*SMALL, "--steps 4 --batch 4"])
    ),
    'jaxmodels generate runs/books --prompt "It was" --temperature 0.8 --top-p 0.95': (
        'jaxmodels generate runs/books --prompt "It was" --temperature 0.8 --top-p 0.95 '
        "--max-new-tokens 32"
    ),
}
# They set up an environment over the network: the commands that they would run are looked at.
MAKE = {"make demo": "bash examples/demo.sh", "make test": "python -m pytest"}


class Block(NamedTuple):
    """A fenced block."""

    section: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines, without comments and with single spaces."""
        lines = (re.split(r"\s#\s", f" {line} ")[0] for line in self.text.splitlines())
        return [" ".join(line.split()) for line in lines if line.strip()]


def blocks() -> list[Block]:
    found = []
    for part in re.split(r"^#{1,3} ", README, flags=re.MULTILINE)[1:]:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        found += [Block(part.partition("\n")[0], *each) for each in fenced]
    return found


BLOCKS = blocks()
MAIN_JOB = "The main job"


def shown(command: str) -> str:
    """What a command prints, on either stream."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert main(shlex.split(SMALLER.get(command, command))[1:]) == DONE, out.getvalue()
    return out.getvalue()


def run_block(block: Block) -> None:
    if block.language == "python":
        exec(compile(block.text, "README.md", "exec"), {"tokens": jnp.zeros((1, 5), jnp.int32)})
        return
    for command in block.commands:
        said = shown(command)
        assert re.search(SHOWS[command], said, re.MULTILINE), said
        assert not re.search(r"Traceback|Error|\bNone\b|\bnan\b|\{'", said), said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Section → the folder in which its commands are called; the main job was done first."""
    home = tmp_path_factory.mktemp("main")
    text = "It was the best of times, it was the worst of times.\n" * 60
    (home / "books").mkdir()
    (home / "books" / "one.txt").write_text(text)
    (home / "other.txt").write_text(text)
    (home / "web.jsonl").write_text(json.dumps({"body": text}) + "\n")
    made = {MAIN_JOB: home}

    def of(section):
        if section not in made:
            made[section] = folder = tmp_path_factory.mktemp("section")
            shutil.copytree(home / "runs", folder / "runs")
            shutil.copytree(home / "books", folder / "books")
            letters = [chr(code) for code in range(32, 128)] + ["\n"]  # as many as `out` knows
            (folder / "letters.json").write_text(json.dumps(letters))
            shutil.copytree(GOLDEN / "nanogpt_bias", folder / "out")
            shutil.copy(GOLDEN / "wigip" / "step_7.zip", folder)
            sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
            tower = Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14))
            tower.save_pretrained(folder / "dinov2-small")
        return made[section]

    with chdir(home):
        for block in BLOCKS:
            if block.section == MAIN_JOB:
                run_block(block)
    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.section != MAIN_JOB and "make" not in block.text],
    ids=lambda block: f"{block.section}-{block.language}",
)
def test_a_block_runs(folders, block):
    with chdir(folders(block.section)):
        run_block(block)


def test_every_command_is_known():
    commands = [line for block in BLOCKS if block.language != "python" for line in block.commands]
    assert sorted(commands) == sorted([*MAKE, *SHOWS])
    assert SMALLER.keys() <= SHOWS.keys()
    assert {block.language for block in BLOCKS} <= {"", "bash", "python"}


def test_make_does_what_is_said():
    for command, does in MAKE.items():
        ran = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert does in ran.stdout, ran.stderr
    assert (ROOT / "examples" / "demo.sh").is_file()


@cache
def help_of(verb: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        assert main([verb, "--help"]) == DONE
    return out.getvalue()


INLINE = sorted(set(re.findall(r"`(jaxmodels [a-z][^`]*)`", README)))


@pytest.mark.parametrize("command", INLINE)
def test_what_stands_in_a_sentence_is_a_command_with_its_options(command):
    verb, *words = shlex.split(command)[1:]
    assert verb in VERBS
    for flag in (word for word in words if word.startswith("--") and word != "--help"):
        assert flag in help_of(verb)


def test_the_table_of_verbs_is_complete():
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    told = "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    assert [verb for verb in VERBS if not re.search(rf"`{verb}\b", told)] == []
