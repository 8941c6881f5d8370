import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data_pipelines
from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.prepare import prepare, read_manifest, read_tokenizer
from jaxmodels.errors import Problem
from jaxmodels.files import write_text
from jaxmodels.reading import digest

ROOT = Path(data_pipelines.__file__).parents[1]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("aababcabé" * 50)
    return f"text:{path}"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_give_the_text_back(tmp_path, text):
    made = prepare(text, tmp_path / "out")
    assert made == read_manifest(tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["characters.json", "manifest.json", "tokens.bin"]
    tokens = np.fromfile(tmp_path / "out" / "tokens.bin", "<u2")
    tokenizer = read_tokenizer(tmp_path / "out", made)
    assert tokenizer.decode(tokens) == "aababcabé" * 50
    assert (made["tokens"], made["unknown"], made["vocab_size"]) == (450, 0, 6)
    assert made["sha256"]["tokens.bin"] == digest(tmp_path / "out" / "tokens.bin")


def test_twice_gives_the_same_bytes(tmp_path, text):
    prepare(text, tmp_path / "one")
    prepare(text, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_rare_characters_are_unknown(tmp_path, text):
    made = prepare(text, tmp_path / "out", min_freq=100)
    assert (made["vocab_size"], made["unknown"], made["min_freq"]) == (4, 100, 100)


def test_a_given_vocabulary_is_used(tmp_path, text):
    tokenizer = CharTokenizer.build(["ab"])
    made = prepare(text, tmp_path / "out", tokenizer=tokenizer, dtype="uint32")
    assert read_tokenizer(tmp_path / "out", made) == tokenizer
    assert made["unknown"] == 100
    assert (tmp_path / "out" / "tokens.bin").stat().st_size == 4 * 450


def test_an_existing_folder_stays_unless_forced(tmp_path, text):
    prepare(text, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(Problem, match="exists already") as caught:
        prepare("pydoc", tmp_path / "out")
    assert caught.value.exit_code == 6
    assert contents(tmp_path / "out") == before
    prepare("pydoc", tmp_path / "out", force=True)
    assert read_manifest(tmp_path / "out")["spec"] == "pydoc"
    assert sorted(os.listdir(tmp_path)) == ["out", "text.txt"]


def test_force_never_removes_what_is_not_ours(tmp_path, text):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("dear")
    with pytest.raises(DataProblem, match="not a prepared folder") as caught:
        prepare(text, tmp_path / "home", force=True)
    assert caught.value.exit_code == 6
    assert (tmp_path / "home" / "thesis.tex").read_text() == "dear"


@pytest.mark.parametrize("content", ["", "\ufeff"])
@pytest.mark.parametrize("tokenizer", [None, CharTokenizer.build(["a"])])
def test_empty_text_is_refused(tmp_path, content, tokenizer):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(DataProblem, match="the text is empty") as caught:
        prepare(f"text:{tmp_path / 'empty.txt'}", tmp_path / "out", tokenizer=tokenizer)
    assert caught.value.exit_code == 3
    assert os.listdir(tmp_path) == ["empty.txt"]


def test_a_vocabulary_that_does_not_fit_the_dtype(tmp_path):
    points = [*range(1, 0xD800), *range(0xE000, 0x11000)]
    (tmp_path / "all.txt").write_bytes("".join(map(chr, points)).encode())
    spec = f"text:{tmp_path / 'all.txt'}"
    with pytest.raises(DataProblem, match="does not fit uint16") as caught:
        prepare(spec, tmp_path / "out", dtype="uint16")
    assert caught.value.exit_code == 5
    assert "--dtype uint32" in caught.value.fix
    assert os.listdir(tmp_path) == ["all.txt"]
    made = prepare(spec, tmp_path / "out")
    assert made["dtype"] == "uint32"
    assert made["vocab_size"] == len(points) + 2
    assert np.fromfile(tmp_path / "out" / "tokens.bin", "<u4").max() == len(points) + 1


def test_the_largest_vocabulary_of_16_bits_fits(tmp_path):
    points = [*range(1, 0xD800), *range(0xE000, 0x11000)][: 65_536 - 2]
    (tmp_path / "all.txt").write_bytes("".join(map(chr, points)).encode())
    prepare(f"text:{tmp_path / 'all.txt'}", tmp_path / "out")
    tokens = np.fromfile(tmp_path / "out" / "tokens.bin", "<u2")
    assert np.array_equal(tokens, np.arange(2, 65_536))


FILL_THE_DISK = """
import errno, resource, signal, sys
from data_pipelines.prepare import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare("pydoc", sys.argv[1], force="force" in sys.argv)
except OSError as error:
    sys.exit(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_new(tmp_path, text, there):
    if there:
        prepare(text, tmp_path / "out")
    names, before = os.listdir(tmp_path), contents(tmp_path / "out") if there else None
    ran = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path / "out"), *["force"] * there],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr.strip() == "EFBIG"
    assert os.listdir(tmp_path) == names
    assert not there or contents(tmp_path / "out") == before


def test_a_vocabulary_file_is_written_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.json", "new")
    assert contents(tmp_path) == {"a.json": b"old"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda manifest: manifest.pop("spec"),
        lambda manifest: manifest.pop("sha256"),
        lambda manifest: manifest["sha256"].pop("characters.json"),
        lambda manifest: manifest["source"].pop("files"),
        lambda manifest: manifest.update(tokens="450"),
        lambda manifest: manifest.update(tokens=449),
        lambda manifest: manifest.update(dtype="float64"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text, damage):
    made = prepare(text, tmp_path / "out")
    damage(made)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(made))
    with pytest.raises(DataProblem, match="not an intact folder") as caught:
        read_manifest(tmp_path / "out")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["manifest.json", "tokens.bin"])
@pytest.mark.parametrize("keep", [0, 10])
def test_a_truncated_file_is_refused(tmp_path, text, name, keep):
    prepare(text, tmp_path / "out")
    os.truncate(tmp_path / "out" / name, keep)
    with pytest.raises(DataProblem, match="not an intact folder"):
        read_manifest(tmp_path / "out")


def test_another_vocabulary_file_is_refused(tmp_path, text):
    made = prepare(text, tmp_path / "out")
    CharTokenizer.build(["xyz"]).save(tmp_path / "out" / "characters.json")
    with pytest.raises(DataProblem, match="not the one in the manifest"):
        read_tokenizer(tmp_path / "out", made)


def test_an_unknown_dtype(tmp_path, text):
    with pytest.raises(DataProblem, match="unknown dtype") as caught:
        prepare(text, tmp_path / "out", dtype="int8")
    assert caught.value.exit_code == 2


def test_progress_is_told(tmp_path, text):
    calls = []
    prepare(text, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert {stage for stage, _, _ in calls} == {"counting characters", "encoding"}
    assert calls[-1] == ("encoding", 500, 500)
