"""Every command and snippet of README.md and docs/ runs, in the form that people see.

A new command fails here until a line of `commands.py` says what it shows.
"""

import io
import re
import shlex
import shutil
import subprocess
import tomllib
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import pytest

import jaxmodels
from bridge import formats
from jaxmodels import errors
from jaxmodels.__main__ import VERBS, main
from jaxmodels.commands import flag_names
from jaxmodels.errors import DONE
from tests.docs import first_hour
from tests.docs.commands import COMMANDS, MAKE
from tests.docs.material import MATERIAL
from tests.docs.pages import PAGES, README, ROOT, Block, blocks


def shown(command: str) -> str:
    """What a command prints, on either stream."""
    typed = COMMANDS[command].smaller or command
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert main(shlex.split(typed)[1:]) == DONE, out.getvalue()
    return out.getvalue()


def run_block(block: Block) -> None:
    if block.language == "python":
        exec(compile(block.text, block.section, "exec"), {"tokens": jnp.zeros((1, 5), jnp.int32)})
        return
    for command, _ in block.lines:
        if command not in MAKE:
            output = shown(command)
            assert re.search(COMMANDS[command].pattern, output, re.MULTILINE), output
            assert not re.search(r"Traceback|Error|\bNone\b|\bnan\b|\{'", output), output


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """Where README's first ten minutes were spent."""
    folder = tmp_path_factory.mktemp("first")
    first_hour.walk(folder)
    return folder


@pytest.mark.slow
def test_first_ten_minutes(first):
    assert (first / "first-pytorch" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != README and blocks(p)], ids=lambda p: p.stem
)
def test_page(page, first, tmp_path):
    """Its blocks, one after the other, in a folder with what they name."""
    commands = [line for block in blocks(page) for line, _ in block.lines]
    text = "\n".join(commands + [COMMANDS[line].smaller for line in commands if line in COMMANDS])
    if " plan " in text and find_spec("libtpu") is None:
        pytest.skip("`plan` needs libtpu")
    if "runs/first" in text:
        shutil.copytree(first / "runs", tmp_path / "runs")
    for path, make in MATERIAL.items():
        if path in text:
            make(tmp_path / path)
    with chdir(tmp_path):
        for block in blocks(page):
            run_block(block)


def test_every_command_is_known():
    found = [block for page in PAGES for block in blocks(page)]
    commands = {line for block in found if block.language != "python" for line, _ in block.lines}
    assert commands == MAKE.keys() | COMMANDS.keys()
    assert {block.language for block in found} <= {"", "bash", "python"}


def test_make_does_what_the_pages_promise():
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


def inline(page: Path) -> set[str]:
    """The commands in its sentences."""
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    return set(re.findall(r"`(jaxmodels [a-z][^`]*)`", text))


@pytest.mark.parametrize("command", sorted(set().union(*map(inline, PAGES))))
def test_inline_command_exists_with_its_options(command):
    verb, *words = shlex.split(command)[1:]
    assert verb in VERBS
    for flag in (word for word in words if word.startswith("--") and word != "--help"):
        assert flag in help_of(verb)


def test_table_of_verbs_is_complete():
    table = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    first_cells = "\n".join(line.split("|")[1] for line in table.splitlines() if line[:1] == "|")
    assert [verb for verb in VERBS if not re.search(rf"`{verb}\b", first_cells)] == []


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_format_is_listed():
    text = page("docs/formats.md")
    assert [name for name in formats.targets() if f"`{name}`" not in text] == []


def test_every_preset_is_listed():
    for arch in jaxmodels.ARCHS:
        row = next(line for line in page("README.md").splitlines() if line.startswith(f"| {arch} "))
        presets = {name.removesuffix("-reg") for name in jaxmodels.arch(arch).PRESETS}
        assert {name for name in presets if name not in row.split("|")[2]} == set()


def test_every_extra_is_listed():
    extras = tomllib.loads(page("pyproject.toml"))["project"]["optional-dependencies"]
    text = page("docs/install.md")
    assert {name for name in extras if f"`[{name}]`" not in text} == {"dev", "docs"}


def test_every_exit_code_is_listed():
    numbers = {value for name, value in vars(errors).items() if name.isupper()}
    codes = {number for number in numbers if number in range(256)}
    assert errors.STOPPED in codes
    first = re.findall(r"^\| ([\d, ]+) \|", page("docs/commands.md"), re.MULTILINE)
    assert codes <= {int(code) for cell in first for code in cell.split(",")}


def test_every_name_of_nanogpt_is_understood():
    """What its page calls the same, `train` takes."""
    rows = [row.split("|") for row in page("docs/from-nanogpt.md").splitlines() if row[:1] == "|"]
    same = " ".join(row[1] for row in rows if row[2].strip().startswith("the same"))
    names = re.findall(r"`(\w+)`", same)
    assert len(names) > 10
    assert [n for n in names if f"--{n.replace('_', '-')}" not in flag_names.SYNONYMS] == []


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not link.startswith("https://")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_readme():
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name}" not in text] == []


def test_readme_is_three_screens():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120
