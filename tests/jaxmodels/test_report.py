"""The report of a run: whole, self-contained, harmless."""

import json
import re
import shutil
from pathlib import Path

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, EXISTS
from tests.jaxmodels.helpers import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("report") / "run"
    flags = ["--steps", "10", "--sample-every", "5", "--stats-every", "5"]
    assert train(run, *flags, "--prompt", "<script>alert(1)</script>") == DONE
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_report_holds_all_and_needs_nothing(run, capsys):
    capsys.readouterr()
    assert main(["report", str(run), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    page = Path(told["report"]).read_text()
    assert told["bytes"] == len(page.encode())
    for title in ("Summary", "Loss", "Samples", "Metrics", "Parameters and", "Settings", "Environ"):
        assert f"<h2>{title}" in page
    assert page.count("data:image/png;base64,") == 3
    assert "charlm:tiny" in page
    assert "optim.peak_lr" in page
    assert "10 of 10" in page
    assert "jaxlib" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,11})', page)
    assert set(sources) == {"data:image/"}
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


@pytest.mark.slow
def test_text_of_a_run_is_text(run):
    out = run / "other.html"
    assert main(["report", str(run), "-o", str(out)]) == DONE
    page = out.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.slow
def test_pictures_of_samples_are_inside(run):
    (run / "samples" / "10.png").write_bytes((run / "loss.png").read_bytes())
    assert main(["report", str(run)]) == DONE
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 4


@pytest.mark.slow
def test_a_report_replaces_reports_only(run, capsys):
    assert main(["report", str(run)]) == DONE
    assert main(["report", str(run)]) == DONE
    own = run / "mine.html"
    own.write_text("precious")
    assert main(["report", str(run), "-o", str(own)]) == EXISTS
    assert "not a report" in capsys.readouterr().err
    assert own.read_text() == "precious"
    assert main(["report", str(run), "-o", str(own), "--force"]) == DONE
    assert own.read_text() != "precious"


def test_what_is_missing_is_left_out(run, tmp_path):
    for name in ("summary.json", "metrics.jsonl", "stats.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    assert main(["report", str(run)]) == DONE
    page = (run / "report.html").read_text()
    assert "<h2>Settings" in page
    assert "<h2>Loss" not in page
    assert main(["report", str(tmp_path / "nothing")]) == CORRUPT
