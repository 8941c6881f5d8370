"""The notebook, cell by cell on a CPU with the smallest model: two sessions, no Jupyter."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import jaxmodels
from jaxmodels.runtime.runs import rundir

NOTEBOOK = Path(jaxmodels.__file__).parents[1] / "examples" / "notebook.ipynb"
MODEL = "wigip:tiny"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text())


@pytest.fixture
def cells(notebook, tmp_path, monkeypatch):
    """The sources of the code cells; `jaxmodels` in them is this tree's."""
    command = tmp_path / "bin" / "jaxmodels"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxmodels "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("MODEL", MODEL)
    monkeypatch.setenv("TERM", "xterm-color")  # as Jupyter sets it
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as in Jupyter
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(cells, code=0, until=None):
    """Runs cells in one namespace, `!` as IPython does; `pip` is not run.

    Args:
        cells: their sources.
        code: what `jaxmodels train` has to end with.
        until: the run is stopped when this file has three lines.

    Returns:
        What pip would have installed.
    """
    names = {}
    installed = []

    def shell(command):
        line = command.format(**names)
        if " -m pip " in line:
            installed.append(shlex.split(line)[-1])
            return 0
        process = subprocess.Popen(["bash", "-c", line])
        while until and process.poll() is None:
            if until.is_file() and until.read_text().count("\n") >= 3:
                process.terminate()
                break
            time.sleep(0.05)
        assert process.wait() == (code if "jaxmodels train" in line else 0), line
        return process.returncode

    names["_shell"] = shell
    for cell in cells:
        source = re.sub(
            r"^( *)!(.*)$",
            lambda match: f"{match[1]}_exit_code = _shell({match[2]!r})",
            cell,
            flags=re.MULTILINE,
        )
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    return installed


def of_training(cells):
    return next(i for i, cell in enumerate(cells) if cell.startswith("!jaxmodels train"))


@pytest.mark.slow
def test_two_sessions(cells, tmp_path, monkeypatch, capfd):
    """The first is ended early; the second goes on from its output, which lies elsewhere."""
    flags = "--eval-every 1000000 --save-every 1000000 --sample-every 0 --batch 4 --steps "
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("OUT", str(first))
    monkeypatch.setenv("MORE", flags + "1000000")
    run(cells[: of_training(cells) + 1], code=75, until=first / "metrics.jsonl")
    assert "In the next session, run all cells again." in capfd.readouterr().out
    (reached,) = rundir.steps(first / "checkpoints")

    monkeypatch.setenv("OUT", str(second))
    monkeypatch.setenv("EARLIER", str(first))
    monkeypatch.setenv("MORE", flags + str(reached + 5))
    drawn = []
    jupyter = SimpleNamespace(Image=lambda path: Path(path).read_bytes(), display=drawn.append)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=jupyter))
    monkeypatch.setitem(sys.modules, "IPython.display", jupyter)
    assert run(cells) == []
    assert [image[:4] for image in drawn] == [b"\x89PNG"]
    out = capfd.readouterr().out
    assert rundir.steps(second / "checkpoints")[-1] == reached + 5
    lines = (second / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, reached + 6))
    assert "\nThe " in out
    assert "\nverified" in out
    assert (tmp_path / "second-pytorch" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_that_fails_stops_the_notebook(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "run"))
    monkeypatch.setenv("MORE", "--mesh nonsense")
    with pytest.raises(RuntimeError, match="jaxmodels train ended with 2"):
        run(cells[: of_training(cells) + 1], code=2)


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("EXTRAS", "tpu,torch")


def install(cells):
    """The cells up to the one that installs, without its last line, which starts JAX."""
    return [cells[0], cells[1].replace("!jaxmodels doctor", "")]


def test_without_the_package_a_source_is_asked_for(cells, not_installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="set SOURCE"):
        run(install(cells))


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("git+https://host/x.git@main", "jaxmodels[tpu,torch] @ git+https://host/x.git@main"),
        ("https://host/x-1.0.zip", "jaxmodels[tpu,torch] @ https://host/x-1.0.zip"),
        ("file:///kaggle/input/x", "jaxmodels[tpu,torch] @ file:///kaggle/input/x"),
        ("jaxmodels", "jaxmodels[tpu,torch]"),
        ("jaxmodels>=0.1,<1", "jaxmodels[tpu,torch]>=0.1,<1"),
    ],
)
def test_it_installs_from_urls_and_registries(cells, not_installed, monkeypatch, source, wanted):
    monkeypatch.setenv("SOURCE", source)
    assert run(install(cells)) == [wanted]
    assert Requirement(wanted).extras == {"tpu", "torch"}


def test_it_installs_from_paths_and_its_own_clone(cells, not_installed, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE", "../a wheel.whl")
    (tmp_path / "a wheel.whl").touch()
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    assert run(install(cells)) == [f"{tmp_path}/a wheel.whl[tpu,torch]"]
    monkeypatch.delenv("SOURCE")
    (tmp_path / "pyproject.toml").touch()
    assert run(install(cells)) == [f"{tmp_path}[tpu,torch]"]


def test_it_opens_in_colab_and_kaggle_with_a_tpu(notebook):
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["accelerator"] == "TPU"
    assert notebook["metadata"]["kaggle"]["isInternetEnabled"] is True


def test_it_is_stored_without_outputs(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            assert not re.search(
                r"\bimport jax\b", "".join(cell["source"])
            )  # it would keep the TPU
