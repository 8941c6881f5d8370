"""The progress and the plan that a conversion prints."""

import mmap
import re

import pytest

import bridge
from bridge.conversion import progress
from jaxmodels.cli import in_bytes
from jaxmodels.errors import DONE
from tests.bridge.helpers import SEED, command


def test_plain_lines_tell_bytes_speed_time_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    code, _, err = command(capsys, "convert", SEED, tmp_path / "out", "--set", "heads=4")
    assert code == DONE
    lines = [line for line in err.splitlines() if " left  " in line]
    assert len(lines) == 27
    told = r" *\d+%  [\d,]+ of [\d,]+ MB  [\d,]+ MB/s  \d+:\d\d left  memory [\d,]+ MB  \S+"
    assert all(re.fullmatch(told, line) for line in lines)
    assert lines[-1].startswith("100%")
    assert " 0:00 left" in lines[-1]


def test_a_line():
    told = progress.line(3_000_000_000, 4_000_000_000, 10.0, "head.weight")
    assert told.startswith(" 75%  3,000 of 4,000 MB  300 MB/s  0:03 left  memory ")
    assert told.endswith(" MB  head.weight")
    assert progress.line(0, 0, 0.0, "x").startswith("  0%")


def test_memory_is_that_of_the_process():
    before = progress.memory()
    held = mmap.mmap(-1, 200_000_000)  # new to the process, whatever it has kept
    for page in range(0, len(held), 4096):
        held[page] = 1
    assert 150_000_000 < progress.memory() - before < 400_000_000


@pytest.mark.parametrize("to", ["safetensors", "orbax"])
def test_the_plan_tells_disk_and_memory(tmp_path, to, capsys):
    report = bridge.convert(SEED, tmp_path / "out", to=to, config={"heads": 4}, dry_run=True)
    size = sum(row["bytes"] for row in report.plan)
    assert size < report.disk_needed < size + 2_000_000
    assert report.memory_needed > max(row["bytes"] for row in report.plan)
    words = ["convert", SEED, tmp_path / "out", "--set", "heads=4", "--to", to, "--dry-run"]
    code, text, _ = command(capsys, *words)
    assert code == DONE
    assert f"about {in_bytes(report.memory_needed)} of memory" in text
    assert not (tmp_path / "out").exists()
