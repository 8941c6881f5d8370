import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import data_pipelines
from data_pipelines.command import main
from data_pipelines.errors import DataProblem
from data_pipelines.prepare import prepare
from data_pipelines.progress import ProgressBar
from data_pipelines.sources import SPECS
from jaxmodels.errors import Problem

ROOT = Path(data_pipelines.__file__).parents[1]


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "text.txt").write_text("hello world " * 100)
    prepare(f"text:{tmp_path / 'text.txt'}", tmp_path / "tokens")
    return tmp_path / "tokens"


def answer(capsys, *argv):
    """The exit code of a command, and the JSON object that it printed."""
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list(capsys):
    assert answer(capsys, "list") == (0, [{"spec": s, "what": w} for s, w in SPECS.items()])
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(SPECS)


def test_prepare_and_inspect(tmp_path, capsys):
    spec = f"text:{tmp_path / 'text.txt'}"
    (tmp_path / "text.txt").write_text("hello world " * 100)
    code, made = answer(capsys, "prepare", spec, tmp_path / "out", "--dtype", "uint32")
    assert (code, made["tokens"], made["dtype"]) == (0, 1200, "uint32")
    code, folder = answer(capsys, "inspect", tmp_path / "out")
    assert (code, folder["vocab_size"]) == (0, 10)
    assert folder["excerpt"].startswith("hello world")
    assert (folder["train_tokens"], folder["valid_tokens"]) == (1140, 60)
    code, text = answer(capsys, "inspect", spec, "--valid-fraction", "0.5")
    assert (code, text["tokens"], text["valid_tokens"], text["vocab_size"]) == (0, 1200, 600, 10)
    assert text["source"]["sha256"] == folder["source"]["sha256"]
    assert main(["inspect", f"bin:{tmp_path / 'out'}"]) == 0
    assert "hello world" in capsys.readouterr().out


def test_prepare_with_a_vocabulary_and_force(tmp_path, prepared, capsys):
    argv = ["prepare", "pydoc", prepared, "--tokenizer", prepared]
    with pytest.raises(Problem, match="exists already"):
        main(list(map(str, argv)))
    code, made = answer(capsys, *argv, "--force")
    assert (code, made["vocab_size"], made["spec"]) == (0, 10, "pydoc")
    assert made["unknown"] > 0


def test_prepare_says_what_it_wrote(tmp_path, capsys):
    assert main(["prepare", "pydoc", str(tmp_path / "out"), "--min-freq", "4"]) == 0
    out = capsys.readouterr().out
    assert "in the vocabulary" in out
    assert f"--data bin:{tmp_path / 'out'}" in out


def test_inspect_finds_a_flipped_bit(prepared):
    data = bytearray((prepared / "tokens.bin").read_bytes())
    data[700] ^= 1
    (prepared / "tokens.bin").write_bytes(data)
    with pytest.raises(DataProblem, match="not an intact folder") as caught:
        main(["inspect", str(prepared)])
    assert caught.value.exit_code == 3
    assert "tokens.bin" in caught.value.why


def test_inspect_a_raw_file(tmp_path, capsys):
    np.arange(100, dtype="<u2").tofile(tmp_path / "raw.bin")
    code, report = answer(capsys, "inspect", f"bin:{tmp_path / 'raw.bin'}")
    assert (code, report["vocab_size"], report["vocab_needed"]) == (0, None, 100)
    assert report["excerpt"] == list(range(20))


def test_bench_compares_in_one_run(prepared, capsys, monkeypatch):
    monkeypatch.setattr("data_pipelines.reports._BATCHES", 5)
    code, report = answer(capsys, "bench", prepared, "--context", 16, "--batch", 4)
    assert code == 0
    rates = report["tokens_per_second"]
    assert rates.keys() == {"loader", "loader_unthreaded", "numpy", "encoding"}
    assert min(rates.values()) > 0


@pytest.mark.slow
def test_subwords_end_to_end(tmp_path, capsys):
    lines = "".join(json.dumps({"body": f"line {i} of the file"}) + "\n" for i in range(100))
    (tmp_path / "a.jsonl").write_text(lines)
    spec, options = f"jsonl:{tmp_path}#body", ["--tokenizer", "gpt2"]
    code, made = answer(capsys, "prepare", spec, tmp_path / "out", *options, "--workers", "1")
    assert (code, made["documents"], made["vocab_size"]) == (0, 100, 50257)
    code, text = answer(capsys, "inspect", spec, *options)
    assert (code, text["tokens"], text["documents"]) == (0, made["tokens"], 100)
    assert text["source"] == made["source"]
    assert text["excerpt"].startswith("line 0 of the file\n\nline 1")
    code, folder = answer(capsys, "inspect", tmp_path / "out")
    assert (code, folder["tokens"], folder["documents"]) == (0, made["tokens"], 100)
    assert folder["excerpt"].startswith("line 0 of the file<|endoftext|>line 1")
    argv = ["prepare", spec, str(tmp_path / "out"), *options, "--dtype", "uint32", "--force"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "tokens of 100 documents, 50,257 in the vocabulary" in out
    assert f"train wikigpt:tiny --data bin:{tmp_path / 'out'}" in out


def test_bench_of_a_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the quick brown fox " * 1000)
    code, report = answer(capsys, "bench", f"text:{tmp_path}", "--tokenizer", "gpt2")
    assert code == 0
    assert report["tokens_per_second"].keys() == {"encoding"}
    assert report["tokens_per_second"]["encoding"] > 1e4


@pytest.mark.parametrize("argv", [[], ["lists"], ["prepare"], ["list", "--jason"]])
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


@pytest.mark.slow
def test_the_command_end_to_end(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")

    def jaxmodels(*argv):
        command = [sys.executable, "-m", "jaxmodels", "data", *map(str, argv)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    ran = jaxmodels("prepare", f"text:{tmp_path / 'bad.txt'}", tmp_path / "out")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert f"where: {tmp_path / 'bad.txt'}, byte 3" in ran.stderr
    assert "Traceback" not in ran.stderr
    ran = jaxmodels("inspect", "pydoc", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["tokens"] > 300_000
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert jaxmodels("prepare", "--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("data_pipelines.progress._SECONDS", 0.0)
    with ProgressBar() as progress:
        progress("encoding", 500_000, 2_000_000)
    assert capsys.readouterr().err == "encoding: 25% of 2.0 MB\n"


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressBar() as progress:
        progress("encoding", 1, 2)
        progress("encoding", 2, 2)
    assert "encoding" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_named(tmp_path):
    limited = f"trap '' XFSZ; ulimit -f 50; exec {sys.executable} -m jaxmodels data prepare pydoc"
    full = subprocess.run(
        ["bash", "-c", f"{limited} {tmp_path / 'out'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 7
    assert f"where: {tmp_path / 'out'}\n" in full.stderr
    assert os.listdir(tmp_path) == []
