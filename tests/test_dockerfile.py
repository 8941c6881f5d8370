"""The Dockerfile: it copies what is needed, and its linter finds nothing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in lines)]


def copied() -> list[str]:
    return [path for word, rest in instructions() if word == "COPY" for path in rest.split()[:-1]]


def test_what_is_copied_exists_and_is_sent_to_docker():
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied()) == sorted(kept)
    assert [path for path in copied() if not (ROOT / path).exists()] == []


def test_what_the_package_is_made_of_is_copied():
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {package.rstrip("*") for package in packages} | {PROJECT["project"]["readme"]}
    assert needed | {"LICENSE", "constraints.txt", "pyproject.toml"} == set(copied())


def test_it_installs_the_extras_and_runs_the_command():
    found = dict(instructions())
    assert found["ARG"] == 'EXTRAS=""'
    assert found["ENTRYPOINT"] == '["jaxmodels"]'
    assert found["FROM"].removeprefix("python:").removesuffix("-slim") in _supported()
    install = found["RUN"].partition(" && ")[0]
    for extras, wanted in [("", "."), ("tpu", ".[tpu]")]:
        echo = install.replace("pip install", "echo", 1)
        done = subprocess.run(
            ["sh", "-c", echo], env={"EXTRAS": extras}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-1] == wanted


def _supported() -> set[str]:
    prefix = "Programming Language :: Python :: "
    return {line.removeprefix(prefix) for line in PROJECT["project"]["classifiers"]}


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).with_name("hadolint")
    linter = beside if beside.is_file() else "hadolint"  # of [dev]
    done = subprocess.run(
        [linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
