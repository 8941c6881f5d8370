"""The terminal disappears while a command runs: no work is lost, short commands end quietly."""

import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress

import pytest

from jaxmodels.__main__ import main
from jaxmodels.commands.lock import locked
from jaxmodels.errors import DONE, EXISTS, NO_SPACE, STOPPED, UNREAD, USAGE
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.runs import rundir
from jaxmodels.terminal import Stream, resilient_output
from tests.jaxmodels.helpers import train

LONG = ["--steps", "1000000", "--save-every", "1000000", "--eval-every", "1000000"]
LONG += ["--sample-every", "0"]
COMMAND = [sys.executable, "-m", "jaxmodels"]


def unread():
    """A stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch):
    """As the notebook asks for: a bar would write thousands of lines into it."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as file:
        stream = Stream(file, needed=False, wait=True)
        monkeypatch.setenv("TERM", "xterm")
        assert stream.isatty()
        monkeypatch.setenv("TERM", "dumb")
        assert not stream.isatty()
    os.close(reader)


def full():
    return open("/dev/full", "w")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Compiles what the runs here share."""
    assert train(tmp_path_factory.mktemp("warm") / "run", "--steps", "2") == DONE


@pytest.mark.slow
@pytest.mark.parametrize("gone", [unread, full, closed])
def test_training_goes_on_without_its_terminal(warm, tmp_path, monkeypatch, gone):
    monkeypatch.setattr("sys.stderr", gone())
    monkeypatch.setattr("sys.stdout", gone())
    assert train(tmp_path / "run", "--steps", "2") == DONE
    assert rundir.steps(tmp_path / "run" / "checkpoints") == [2]
    assert [record["step"] for record in read(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


@pytest.mark.slow
def test_a_summary_without_space_is_told_when_the_work_is_done(warm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", full())
    assert train(tmp_path / "run", "--steps", "2", "--json") == NO_SPACE
    assert "no space for the output; the work itself is done" in capsys.readouterr().err
    assert rundir.steps(tmp_path / "run" / "checkpoints") == [2]


@pytest.mark.slow
def test_a_conversion_whose_reader_went_away_is_whole(warm, tmp_path, monkeypatch):
    assert train(tmp_path / "run", "--steps", "2") == DONE
    monkeypatch.setattr("sys.stdout", unread())
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "model")]) == DONE
    assert damage(tmp_path / "model") == []


@pytest.mark.parametrize(
    ("words", "code"), [(["list", "charlm:tiny"], UNREAD), (["data", "list"], DONE)]
)
def test_who_stops_reading_gets_no_error(monkeypatch, capsys, words, code):
    monkeypatch.setattr("sys.stdout", unread())
    assert main(words) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("closing", "words", "code"),
    [
        ("| head -0", "--help", UNREAD),
        (">&-", "--help", DONE),
        ("2>&-", "--nonsense", USAGE),
        ("2>/dev/full", "--nonsense", USAGE),
        ("<&- >&- 2>&-", "--nonsense", USAGE),
    ],
)
def test_as_a_shell_does_it(closing, words, code):
    line = f'"$@" {words} {closing}; exit ${{PIPESTATUS[0]}}'
    ran = subprocess.run(["bash", "-c", line, "bash", *COMMAND], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (code, "")


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path):
    """Else what native code prints would stand in it."""
    look = (
        "import os\nfrom jaxmodels.terminal import resilient_output\n"
        f"with resilient_output(False), open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "    os.write(1, b'x'); os.write(2, b'x'); assert file.fileno() > 2\n"
    )
    line = '"$@" <&- >&- 2>&-'
    ran = subprocess.run(["bash", "-c", line, "bash", sys.executable, "-c", look], check=False)
    assert ran.returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_nobody_waits_for_a_reader_that_stands_still(monkeypatch, kind):
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("jaxmodels.terminal._PATIENCE", 50)
        messages, start = Stream(stream, needed=False, wait=False), time.monotonic()
        for _ in range(3000):
            messages.write("a line of a hundred characters" * 3 + "\n")
        assert time.monotonic() - start < 5
        assert len(os.read(reader, 100)) > 50
        assert os.get_blocking(writer)  # others share it
        os.close(reader)
        messages.write("more")
        messages.close()


def test_a_result_is_waited_for_though_others_made_the_stream_not_wait():
    """Some programs leave a terminal or a pipe that they share like that."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream, os.fdopen(reader) as other:
        read = []
        thread = threading.Thread(target=lambda: read.append(other.read()))
        results = Stream(stream, needed=True, wait=True)
        thread.start()
        results.write("x" * 1_000_000)
        results.flush()
        assert results.fileno() == writer
        stream.close()
        thread.join(10)
    assert read == ["x" * 1_000_000]


def test_what_an_encoding_does_not_have_is_escaped():
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding="ascii"), needed=True, wait=True)
    stream.write("2 × 3, \udcff\n")
    stream.flush()
    assert raw.getvalue() == b"2 \\xd7 3, \\udcff\n"


def test_the_streams_and_sighup_are_as_before():
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)
    with resilient_output(True):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)) == before


def test_who_holds_a_run_is_named(tmp_path, capsys):
    """As after a lost connection, when the command is given again."""
    with locked(tmp_path / "run"):
        assert train(tmp_path / "run") == EXISTS
    assert f"process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.slow
def test_a_lost_connection_does_not_end_a_run(tmp_path):
    """As sshd does it: the terminal is taken away, and who had it gets SIGHUP."""
    run = tmp_path / "run"
    with warnings.catch_warnings(action="ignore"):  # of threads; it becomes another program
        child, terminal = pty.fork()
    if child == 0:
        os.execv(
            COMMAND[0],
            [*COMMAND, "train", "charlm:tiny", "--out", str(run), *LONG],
        )
    metrics = run / "metrics.jsonl"

    def lines() -> int:
        return metrics.read_text().count("\n") if metrics.is_file() else 0

    while not lines():
        with suppress(OSError):
            os.read(terminal, 10_000)
    os.close(terminal)
    reached = lines()
    while lines() < reached + 50:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STOPPED
    newest = rundir.steps(run / "checkpoints")[-1]
    assert [record["step"] for record in read(metrics)] == list(range(1, newest + 1))
