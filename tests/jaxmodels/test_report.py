"""The report of a run: complete, self-contained, harmless."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, EXISTS
from jaxmodels.runtime.reporting import plots
from jaxmodels.runtime.reporting.meanings import chance, meaning
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


@pytest.fixture(scope="module")
def page(made):
    assert main(["report", str(made)]) == DONE
    return (made / "report.html").read_text()


@pytest.fixture
def without_plots(monkeypatch):
    """For what does not depend on plots, which take most of the time."""
    monkeypatch.setattr(plots, "pictures", lambda *_: ())


@pytest.mark.slow
def test_a_report_holds_all_and_needs_nothing(run, capsys):
    capsys.readouterr()
    assert main(["report", str(run), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    page = Path(told["report"]).read_text()
    assert told["bytes"] == len(page.encode())
    for title in ("Summary", "Curves", "Samples", "Parameters and", "Settings", "Environ"):
        assert f"<h2>{title}" in page
    curves = re.findall(r"<figcaption><b>(\w+)</b> (.*?)</figcaption>", page)
    assert [name for name, _ in curves[:3]] == ["loss", "grad_norm", "lr"]
    assert len(curves) == 4 + 6
    assert all(text for _, text in curves)
    assert "By chance: 4." in dict(curves)["loss"]
    assert page.count("data:image/png;base64,") == len(curves)
    assert "charlm:tiny" in page
    assert "optim.peak_lr" in page
    assert "10 of 10" in page
    assert "jaxlib" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,11})', page)
    assert set(sources) == {"data:image/"}
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


@pytest.mark.slow
def test_text_of_a_run_is_text(run, without_plots):
    out = run / "other.html"
    assert main(["report", str(run), "-o", str(out)]) == DONE
    page = out.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.slow
def test_pictures_of_samples_are_inside(run, without_plots):
    (run / "samples" / "10.png").write_bytes((run / "loss.png").read_bytes())
    assert main(["report", str(run)]) == DONE
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 1


@pytest.mark.slow
def test_a_report_replaces_reports_only(run, capsys, without_plots):
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


def test_every_line_of_the_layers_has_its_colour_in_the_key(run):
    assert main(["report", str(run)]) == DONE
    page = (run / "report.html").read_text()
    colours, names = zip(
        *re.findall(r"background: (#\w{6})\"></span>([\w/]+)</li>", page), strict=True
    )
    assert "blocks/1" in names
    assert len(set(colours)) == len(names)


def test_it_is_readable_on_a_phone_and_in_the_dark(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page


CHARLM = {"arch": "charlm", "model": {"vocab": 64}, "recipe": {"batch": 8}}
BITGEN = {"arch": "bitgen", "model": {"vocab": 33, "slots": 64}, "recipe": {"batch": 8}}


@pytest.mark.parametrize(
    ("name", "config", "level"),
    [
        ("loss", CHARLM, math.log(64)),
        ("loss", BITGEN, None),
        ("loss", {}, None),
        ("perplexity", CHARLM, 64),
        ("token_accuracy", CHARLM, 1 / 64),
        ("acc_t2i", BITGEN, 1 / 8),
        ("itm_acc", BITGEN, 2 / 3),
        ("itm_acc", {"arch": "bitgen_stage1"}, 1 / 2),
        ("grad_norm", CHARLM, None),
        ("anything", CHARLM, None),
    ],
)
def test_chance(name, config, level):
    assert chance(name, config) == level
    assert ("By chance" in meaning(name, config)) == (level is not None)
