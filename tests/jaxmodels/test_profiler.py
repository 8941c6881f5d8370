"""Profiling does not affect training: no failure of it ends a run."""

import jax
import pytest

from jaxmodels.runtime.training.profiler import TracedSteps


def broken(*_, **__):
    raise RuntimeError("No space left on device\nmore")


@pytest.mark.parametrize("call", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, capsys, call):
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, broken if name == call else lambda *_, **__: None)
    window = TracedSteps(2, 3, tmp_path / "profile")
    for step in (1, 2, 3):
        window.before(step)
    assert window.ends(3) == (call == "stop_trace")
    assert not window.stop()
    window.before(3)
    assert (window.running, window.done) == (False, True)
    said = capsys.readouterr().err
    assert said == f"--profile: no trace was written to {window.folder}: No space left on device\n"
