"""`jaxmodels bench`: which suites run with which options, and what happens if one fails."""

import json
import sys
from importlib import import_module
from types import ModuleType

import pytest

from benchmarks import command
from benchmarks.command import SUITES, split
from benchmarks.records import Absent, save
from jaxmodels.__main__ import main
from jaxmodels.errors import UNVERIFIED, USAGE, Problem

MACHINE = {"cpu": "x", "cores": 2, "devices": ["cpu: cpu"]}


def suite(name, failure=None):
    """A suite that records the words that it got."""
    module = ModuleType(f"bench_test_{name}")
    module.RUNS = (("--size", "large"), ("--size", "larger"))
    module.QUICK = (("--size", "small"),)

    def run(words):
        if failure:
            raise failure
        from argparse import ArgumentParser

        parser = ArgumentParser()
        for option in ("--size", "--out", "--more"):
            parser.add_argument(option)
        got = parser.parse_args(words)
        made = {"suite": name, "case": str(got.size), "contestant": "a", "unit": "ms"}
        made |= {"median": 2.0, "words": [got.size, got.more], "machine": MACHINE, "date": "2"}
        print("a table")
        from pathlib import Path

        save([made], Path(got.out))
        return [made]

    module.main = run
    return module


@pytest.fixture
def suites(monkeypatch):
    """Sets the suites: name → failure or None."""

    def put(**failures):
        rows = {}
        for name, failure in failures.items():
            module = suite(name, failure)
            module.__spec__ = import_module("json").__spec__  # so that it can be found
            monkeypatch.setitem(sys.modules, module.__name__, module)
            rows[name] = (module.__name__, "what it measures")
        monkeypatch.setattr(command, "SUITES", rows)

    return put


def written(folder, name):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["words"] for line in lines]


def test_without_a_name_all_suites_run_as_usual(tmp_path, suites):
    suites(one=None, two=None)
    assert main(["bench", "--out", str(tmp_path)]) == 0
    assert (
        written(tmp_path, "one") == written(tmp_path, "two") == [["large", None], ["larger", None]]
    )


def test_quick(tmp_path, suites):
    suites(one=None, two=None)
    assert main(["bench", "two", "--quick", f"--out={tmp_path}"]) == 0
    assert written(tmp_path, "two") == [["small", None]]
    assert not (tmp_path / "one.jsonl").exists()


def test_one_suite_takes_its_own_options(tmp_path, suites):
    suites(one=None, two=None)
    assert main(["bench", "one", "--more", "x", "--out", str(tmp_path)]) == 0
    assert main(["bench", "one", "--quick", "--more", "y", "--out", str(tmp_path)]) == 0
    assert written(tmp_path, "one") == [[None, "x"], ["small", "y"]]
    with pytest.raises(SystemExit) as caught:  # two suites have no options of their own
        main(["bench", "one", "two", "--more", "x", "--out", str(tmp_path)])
    assert caught.value.code == USAGE


def test_a_suite_that_fails_or_cannot_run_keeps_nobody_else(tmp_path, suites, capsys):
    failure = Problem("numbers differ", exit_code=UNVERIFIED)
    suites(one=None, wrong=failure, absent=Absent("no such chip", "buy one"), two=None)
    assert main(["bench", "--json", "--out", str(tmp_path)]) == UNVERIFIED
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["absent"] == {"absent": "no such chip"}
    assert result["failed"] == {"wrong": "Problem: numbers differ"}
    assert [record["suite"] for record in result["records"]] == ["one", "one", "two", "two"]
    assert len(written(tmp_path, "one")) == len(written(tmp_path, "two")) == 2
    assert "absent is left out: no such chip (buy one)" in err
    assert "numbers differ" in err
    assert "a table" in err


def test_compared_with_what_was_there_before(tmp_path, suites, capsys):
    suites(one=None)
    old = {"suite": "one", "case": "small", "contestant": "a", "unit": "ms", "median": 4.0}
    save([old | {"machine": MACHINE, "date": "1"}], tmp_path)
    words = ["bench", "one", "--quick", "--out", str(tmp_path), "--compare", str(tmp_path)]
    assert main(words) == 0
    assert "one, small, a: 4 → 2 ms (-50.0%" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["before"], change["after"], change["change"]) == (2, 2, 0)


def test_unknown_suites_and_files_are_refused_before_anything_runs(tmp_path, suites, capsys):
    suites(one=None)
    assert main(["bench", "on", "--out", str(tmp_path)]) == USAGE
    assert "did you mean one?" in capsys.readouterr().err
    assert main(["bench", "--out", str(tmp_path), "--compare", str(tmp_path / "no.jsonl")]) == 3
    assert list(tmp_path.iterdir()) == []


def test_words_are_split():
    words = ["step", "--batch", "8", "--out", "a", "--quick", "--compare=b", "--isolated"]
    own = ["--out", "a", "--quick", "--compare=b"]
    assert split(words) == (("step",), own, ["--batch", "8", "--isolated"])
    assert split(["--json", "--out"]) == ((), ["--json", "--out"], [])


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_says_what_it_runs(name):
    found = import_module(SUITES[name][0])
    for lines in (found.RUNS, found.QUICK):
        assert len(lines) > 0
        assert all(isinstance(word, str) for line in lines for word in line)
    assert callable(found.main)


@pytest.mark.parametrize(
    "words",
    [
        "step --batch 0",
        "step --rounds 0",
        "decode --batches 8 0",
        "host --steps 0",
        "forward --side 0",
        "ternary --rows 1 0",
        "data --times 0",
        "bridge --rounds 0",
        "memory --rounds 0",
        "objectives --seconds 0",
        "scenes --steps 0",
        "plan --batch 0",
        "scaling --batch 0",
    ],
)
def test_nothing_is_not_measured(words, tmp_path, capsys):
    assert main(["bench", *words.split(), "--out", str(tmp_path)]) == USAGE
    assert "must be at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("scaling --devices 2 4", "must begin with 1"),
        ("scaling --devices 1 2 --batch 3", "3 sequences cannot be split over 2 devices"),
        ("step --preset bwetaf:tiny --seed-package .", "the seed's package is missing"),
        ("step --preset charlm:tiny --seed-package .", "trains bwetaf only"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, why, tmp_path, capsys):
    assert main(["bench", *words.split(), "--out", str(tmp_path)]) == USAGE
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
