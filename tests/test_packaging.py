"""Packaging: the wheel, the version, and the command without PyTorch."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import USAGE
from jaxmodels.explain import explain
from jaxmodels.extras import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Stands for an environment without the packages: the import system does not find them.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ("torch", "transformers") else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxmodels {jaxmodels.__version__}\n"


def test_names_of_the_bridge_are_listed():
    assert dir(bridge) == sorted(bridge.__all__)


def test_extras_are_those_of_the_package():
    distributions = {
        "libtpu": "jax[tpu]",
        "jax_cuda13_plugin": "jax[cuda13]",
        "lm_eval": "lm-eval",
    }
    for module, extra in EXTRAS.items():
        name = distributions.get(module, module)
        assert [line for line in PROJECT["optional-dependencies"][extra] if line.startswith(name)]


def test_core_needs_no_pytorch():
    core = {re.split(r"[^\w-]", line)[0] for line in PROJECT["dependencies"]}
    assert "safetensors" in core
    assert not {"torch", "transformers"} & core


def test_import_that_fails_names_the_extra():
    problem = explain(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert problem.exit_code == USAGE
    assert problem.fix == "pip install 'jaxmodels[torch]'"


@pytest.mark.slow
def test_commands_without_pytorch(tmp_path):
    """Trains, samples, evaluates, converts, reports; what needs PyTorch names the extra."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    script = """
from jaxmodels.__main__ import main

def run(*words, code=0):
    print("$", *words, flush=True)
    assert main(list(words)) == code, words

small = ["--data", "text:text.txt", "--steps", "2", "--batch", "2"]
run("train", "charlm:tiny", *small, "--out", "run")
run("generate", "run", "--prompt", "The", "--max-new-tokens", "2")
run("eval", "run")
run("report", "run")
run("convert", "run", "model")
run("convert", "run", "orbax", "--to", "orbax")
run("inspect", "model")
run("verify", "model")
run("verify", "model", "--against", "run")
run("convert", "run", "more", "--verify", "logits", code=2)
run("verify", "orbax/no", code=3)
run("verify", "model", "--gradients", code=2)
run("train", "wikigpt:tiny", *small, "--out", "gpt")
run("convert", "gpt", "nano", "--to", "nanogpt", code=2)
run("convert", "gpt", "hf", "--to", "gpt2")
"""
    path = os.pathsep.join([str(tmp_path / "hidden"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "defect" not in done.stderr
    assert done.stderr.count("pip install 'jaxmodels[torch]'") == 3
    assert done.stdout.count("not compared with PyTorch") == 2
    assert not (tmp_path / "nano").exists()


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_is_needed(tmp_path):
    """The wheel alone runs `jaxmodels list`."""
    build = "import sys; from setuptools import build_meta as b; b.build_{0}(sys.argv[1])"
    source = _links(tmp_path / "source")
    for kind in ("wheel", "sdist"):
        words = [sys.executable, "-c", build.format(kind), str(tmp_path)]
        done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    data = {"jaxmodels/py.typed", "bridge/py.typed", "data_pipelines/gpt2/gpt2.tiktoken"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert data <= names
        assert not [name for name in names if name.startswith("tests")]
        archive.extractall(tmp_path / "installed")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert data | {"LICENSE", "README.md", "pyproject.toml"} <= inside
    done = subprocess.run(
        [sys.executable, "-m", "jaxmodels", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wikigpt" in done.stdout


def _links(folder: Path) -> Path:
    """The sources as links, since a build leaves folders beside them."""
    folder.mkdir()
    packages = ("jaxmodels", "bridge", "data_pipelines", "benchmarks")
    for name in (*packages, "pyproject.toml", "README.md", "LICENSE"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_core_takes_less_than_a_gigabyte_and_a_half():
    """What `pip install jaxmodels` brings, with all that it needs in turn."""
    found: dict[str, int] = {}
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    while wanted:
        need = wanted.pop()
        if need.name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        files = distribution(need.name).files or []
        paths = (Path(str(file.locate())) for file in files)
        found[need.name] = sum(path.stat().st_size for path in paths if path.is_file())
        wanted += [Requirement(line) for line in requires(need.name) or []]
    assert "jaxlib" in found
    assert "torch" not in found
    assert sum(found.values()) < 1.5e9, sorted(found.items(), key=lambda item: -item[1])[:10]


def test_constraints_leave_cudas_libraries_to_pytorch():
    """PyPI's torch requires exact versions of them, which any other pin contradicts."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("nvidia")] == []
