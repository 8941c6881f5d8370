import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

import data_pipelines
from data_pipelines import encoding, records, shards
from data_pipelines import prepare as preparing
from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import prepare, read_manifest
from data_pipelines.tokenizers import load_tokenizer

ROOT = Path(data_pipelines.__file__).parents[1]
GPT2 = GPT2Tokenizer()
TEXTS = [f"document {i} says  ünï \n" * (i % 5) for i in range(200)]


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """A spec of many small parts, in several shards."""
    monkeypatch.setattr(records, "_RANGE", 500)
    monkeypatch.setattr(preparing, "SHARD", 2000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return f"jsonl:{path}"


def tokens_of(folder):
    dtype = read_manifest(folder)["dtype"]
    return np.fromfile(folder / "tokens.bin", preparing.DTYPES[dtype]).astype(np.int32)


def expected(tokenizer, texts):
    """Documents that hold anything, one after the other, with what stands between them."""
    parts = []
    for text in texts:
        if text:
            parts += [tokenizer.encode(text), encoding.separator(tokenizer)]
    return np.concatenate(parts[:-1])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_documents_are_separated_and_in_order(tmp_path, lines, workers):
    made = prepare(lines, tmp_path / "out", tokenizer=GPT2, workers=workers)
    assert np.array_equal(tokens_of(tmp_path / "out"), expected(GPT2, TEXTS))
    assert (made["documents"], made["unknown"], made["dtype"]) == (160, 0, "uint16")
    assert made["tokenizer"] == {
        "file": "tokenizer.json",
        "digest": GPT2.digest,
        "end_of_text": 50256,
    }
    assert len(made["shards"]) > 3
    separators = made["tokens"] - sum(shard["tokens"] for shard in made["shards"])
    assert 0 < separators < len(made["shards"])
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "tokenizer.json", "tokens.bin"]
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out"]
    data = open_data(f"bin:{tmp_path / 'out'}", folder="", context=8, batch=2, segments=True)
    assert data.tokenizer == GPT2
    assert next(data.train()).keys() == {"tokens", "segments"}


def test_characters_in_shards_are_those_of_the_whole(tmp_path, lines, monkeypatch):
    many = prepare(lines, tmp_path / "many")
    monkeypatch.setattr(preparing, "SHARD", 1 << 30)
    one = prepare(lines, tmp_path / "one")
    assert len(one["shards"]) == 1 < len(many["shards"])
    assert many | {"shards": one["shards"]} == one
    assert np.array_equal(tokens_of(tmp_path / "many"), tokens_of(tmp_path / "one"))
    tokenizer = load_tokenizer(tmp_path / "one")
    assert tokenizer.decode(tokens_of(tmp_path / "one")) == "\n\n".join(filter(None, TEXTS))


def test_a_users_tokenizer_is_sent_to_other_processes(tmp_path, lines):
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "says": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>", "says"])  # the second must stay text
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.encode("it is open already")
    manifest = prepare(lines, tmp_path / "out", tokenizer=tokenizer, workers=2)
    assert np.array_equal(tokens_of(tmp_path / "out"), expected(tokenizer, TEXTS))
    assert manifest["unknown"] == (tokens_of(tmp_path / "out") == 0).sum() > 0


def interrupted(monkeypatch, after):
    """Lets the encoding of shard `after` fail, as a full disk would; counts what is encoded."""
    encode, done = shards.encode, []

    def limited(*arguments, **options):
        if len(done) == after:
            raise OSError(28, "No space left on device")
        done.append(arguments)
        return encode(*arguments, **options)

    monkeypatch.setattr(shards, "encode", limited)
    return done


@pytest.mark.slow
def test_what_was_done_is_used_again(tmp_path, lines, monkeypatch):
    whole = prepare(lines, tmp_path / "whole", tokenizer=GPT2)
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(OSError, match="No space"):
            prepare(lines, tmp_path / "out", tokenizer=GPT2)
    assert sorted(os.listdir(tmp_path)) == [".out.parts", "a.jsonl", "whole"]
    calls = []
    with monkeypatch.context() as patch:
        done = interrupted(patch, -1)
        prepare(lines, tmp_path / "out", tokenizer=GPT2, progress=lambda *call: calls.append(call))
    count = len(whole["shards"])
    assert len(done) == count - 3
    assert f"encoding (3 of {count} parts done before)" in {stage for stage, _, _ in calls}
    assert calls[-1][1] == calls[-1][2]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "cut", "journal", "gone"])
def test_a_damaged_part_is_made_again(tmp_path, lines, monkeypatch, damage):
    whole = prepare(lines, tmp_path / "whole", tokenizer=GPT2)
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(OSError, match="No space"):
            prepare(lines, tmp_path / "out", tokenizer=GPT2)
    part = tmp_path / ".out.parts" / "000001.bin"
    if damage == "flip":
        part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
    if damage == "cut":
        os.truncate(part, 10)
    if damage == "journal":
        part.with_suffix(".json").write_text("{")
    if damage == "gone":
        part.unlink()
    with monkeypatch.context() as patch:
        done = interrupted(patch, -1)
        prepare(lines, tmp_path / "out", tokenizer=GPT2)
    assert len(done) == len(whole["shards"]) - 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["text", "tokenizer", "dtype"])
def test_parts_of_another_plan_are_not_used(tmp_path, lines, monkeypatch, change):
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(OSError, match="No space"):
            prepare(lines, tmp_path / "out", tokenizer=GPT2)
    if change == "text":
        path = Path(lines.removeprefix("jsonl:"))
        path.write_text(path.read_text().replace("document 1 ", "document x "))
    tokenizer = CharTokenizer.build(TEXTS) if change == "tokenizer" else GPT2
    dtype = "uint32" if change == "dtype" else None
    prepare(lines, tmp_path / "out", tokenizer=tokenizer, dtype=dtype)
    prepare(lines, tmp_path / "fresh", tokenizer=tokenizer, dtype=dtype)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_text_that_changes_meanwhile_is_refused(tmp_path, lines, monkeypatch):
    path, encode = Path(lines.removeprefix("jsonl:")), shards.encode

    def late(*arguments, **options):
        with path.open("a") as file:
            file.write('{"text": "more"}\n')
        return encode(*arguments, **options)

    monkeypatch.setattr(shards, "encode", late)
    with pytest.raises(DataProblem, match="changed while it was read") as caught:
        prepare(lines, tmp_path / "out", tokenizer=GPT2)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_error_in_another_process_is_told(tmp_path, lines):
    path = Path(lines.removeprefix("jsonl:"))
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataProblem, match="not JSON") as caught:
        prepare(lines, tmp_path / "out", tokenizer=GPT2, workers=2)
    assert caught.value.where == f"{path}, line 201"


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path):
    """SIGKILL in the middle; the same command again gives what an undisturbed one gives."""
    lines = (json.dumps({"text": f"{i} the quick brown fox " * 300}) + "\n" for i in range(6000))
    (tmp_path / "a.jsonl").write_text("".join(lines))  # 43 MB: three shards
    command = [sys.executable, "-m", "jaxmodels", "data", "prepare", f"jsonl:{tmp_path}"]
    options = ["--tokenizer", "gpt2", "--workers", "2", "--json"]
    first = subprocess.Popen([*command, str(tmp_path / "out"), *options], cwd=ROOT)
    parts, begun = tmp_path / ".out.parts", time.monotonic()
    while not (parts / "000000.json").exists() and time.monotonic() - begun < 60:
        time.sleep(0.02)
    workers = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    first.send_signal(signal.SIGKILL)
    first.wait()
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):  # they end with it
        assert time.monotonic() - begun < 60
        time.sleep(0.02)
    kept = (parts / "000000.bin").stat().st_mtime_ns
    assert not (tmp_path / "out").exists()
    seen = []

    def progress(stage, done, total):
        seen.append(stage)
        if (parts / "000000.bin").exists():
            assert (parts / "000000.bin").stat().st_mtime_ns == kept

    made = prepare(f"jsonl:{tmp_path}", tmp_path / "out", tokenizer=GPT2, progress=progress)
    assert any("parts done before" in stage for stage in seen)
    line = GPT2.encode("0 the quick brown fox " * 300)
    assert made["documents"] == 6000
    assert np.array_equal(tokens_of(tmp_path / "out")[: len(line)], line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


@pytest.mark.slow
def test_a_stop_waits_for_no_more_than_what_runs(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(preparing, "SHARD", 500)
    stopped = []

    def stop(stage, done, total):
        if stage == "encoding" and not stopped:
            stopped.append(done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(lines, tmp_path / "out", tokenizer=GPT2, workers=2, progress=stop)
    kept = {path.stem for path in (tmp_path / ".out.parts").glob("*.bin")}
    whole = prepare(lines, tmp_path / "out", tokenizer=GPT2)
    assert 0 < len(kept) < len(whole["shards"])


def test_the_second_of_two_waits_and_finds_it_done(tmp_path, lines):
    problems: list[DataProblem] = []

    def second():
        with pytest.raises(DataProblem, match="exists already") as caught:
            prepare(lines, tmp_path / "out", tokenizer=GPT2)
        problems.append(caught.value)

    with shards.locked(tmp_path / ".out.parts"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        (tmp_path / "out").mkdir()  # as the first would have
    thread.join(30)
    assert [problem.exit_code for problem in problems] == [6]
