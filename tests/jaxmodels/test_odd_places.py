"""Runs in unusual places and environments do not fail, and lose no plots."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE
from jaxmodels.runtime.reporting.pictures import defaults, picture
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.tensorstore import orbax_path
from tests.jaxmodels.helpers import train

# No UTF-8; a formula that is none; no glyph; a pattern that does not match itself; a fragment.
NAME = os.fsdecode(b"r\xff $x$ \xe6\xbc\xa2 [1] #%20")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run in a folder whose name is no UTF-8, begun twice."""
    run = tmp_path_factory.mktemp("odd") / NAME
    steps = ("--steps", "2", "--eval-every", "2", "--save-every", "1", "--stats-every", "1")
    assert train(run, *steps) == DONE
    assert train(run, *steps, "--steps", "3") == DONE
    return run


@pytest.mark.slow
def test_a_run_whose_path_is_no_utf8(run, capsys):
    assert rundir.steps(run / "checkpoints")[-1] == 3
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "stats.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "RUN", "--max-new-tokens", "4"],
        ["eval", "RUN", "--max-batches", "1"],
        ["inspect", "RUN"],
        ["verify", "RUN"],
        ["diff", "RUN", "RUN"],
        ["convert", "RUN", "OUT"],
        ["inspect", "OUT"],
        ["verify", "OUT", "--against", "RUN"],
        ["convert", "OUT", "ORBAX", "--to", "orbax"],
        ["generate", "OUT", "--max-new-tokens", "4"],
        ["report", "RUN"],
    ],
    ids=" ".join,
)
def test_every_verb_takes_it(run, capsys, words):
    places = {"RUN": run, "OUT": run.with_name(NAME + "out"), "ORBAX": run.with_name(NAME + "orb")}
    assert main([str(places.get(word, word)) for word in words]) == DONE, capsys.readouterr().err
    assert "no plot" not in capsys.readouterr().err


def test_a_path_is_changed_only_where_it_must_be(tmp_path):
    assert orbax_path(tmp_path / "new") == tmp_path / "new"
    odd = tmp_path / os.fsdecode(b"\xff") / "a"
    odd.mkdir(parents=True)
    (odd / "file").touch()
    assert str(orbax_path(odd)).encode()
    assert orbax_path(odd).samefile(odd)
    shutil.rmtree(odd.parent)
    odd.mkdir(parents=True)
    assert orbax_path(odd).samefile(odd)


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_plots_need_no_backend(tmp_path, backend):
    """As Jupyter leaves it to the processes that it starts."""
    script = (
        "import os\nfrom jaxmodels.runtime.reporting.pictures import picture\n"
        "def plot():\n    from matplotlib.figure import Figure\n    return Figure()\n"
        "assert picture('it', plot)\nassert os.environ['MPLBACKEND']\n"
    )
    environment = os.environ | {"MPLBACKEND": backend}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_plot_that_fails_is_said_and_fails_nothing(capsys):
    assert picture("it", lambda: 1 / 0) is None
    assert "no plot of it: ZeroDivisionError" in capsys.readouterr().err


def test_the_settings_of_a_notebook_do_not_reach_the_plots():
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True}):
        with defaults():
            assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.slow
def test_where_only_ascii_can_be_written(tmp_path):
    """`LC_ALL=C` without the coercion and UTF-8 mode that Python falls back on."""
    run = tmp_path / "Läufe"
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "jaxmodels", *words]
        ran = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert ran.returncode == DONE, ran.stderr
        assert b"no plot" not in ran.stderr
        return (ran.stdout + ran.stderr).decode("ascii")

    flags = ["--steps", "2", "--batch", "4", "--eval-every", "2", "--sample-every", "2"]
    call("train", "charlm:tiny", "--out", str(run), *flags)
    assert rundir.steps(run / "checkpoints") == [2]
    assert (run / "loss.png").is_file()
    call("generate", str(run), "--max-new-tokens", "99")
    call("report", str(run))


def test_a_signal_before_anything_was_done_leaves_nothing(tmp_path):
    """README's table: 143 (128 + SIGTERM), in the first moments of the process."""
    command = [sys.executable, "-m", "jaxmodels", "train", "charlm:tiny", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "run")], stderr=subprocess.DEVNULL)
    time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    assert not (tmp_path / "run").exists()
