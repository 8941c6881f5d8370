import json
import os
import shutil

import numpy as np
import pytest

from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import prepare

SIZES = {"context": 16, "batch": 8}


@pytest.fixture
def folder(tmp_path):
    """A folder with two texts; prepared tokens go to its neighbour `tokens`."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the quick brown fox " * 100)
    (tmp_path / "texts" / "b.txt").write_text("jumps over the lazy dog " * 100)
    return tmp_path


def opened(folder, **changes):
    options = {"folder": folder / "tokens", **SIZES} | changes
    spec = options.pop("spec", f"text:{folder / 'texts'}")
    return open_data(spec, **options)


def test_the_default_text_opens_and_trains(tmp_path):
    data = open_data("pydoc", folder=tmp_path / "deep" / "tokens", seed=3, **SIZES)
    assert data.notes == []
    assert data.vocab_size == data.vocab_needed == data.tokenizer.vocab_size
    assert data.train_tokens + data.valid_tokens == len(data.tokens)
    assert data.valid_tokens == int(len(data.tokens) * 0.05)
    batch = next(data.train())["tokens"]
    assert (batch.shape, batch.dtype) == ((8, 17), np.int32)
    text = data.tokenizer.decode(data.tokens)
    for row in batch:
        assert data.tokenizer.decode(row) in text[: data.train_tokens]
    held_out = data.valid()[0]["tokens"][0]
    assert data.tokenizer.decode(held_out) == text[data.train_tokens :][:17]
    assert not data.tokens.flags.writeable


def test_training_never_sees_what_is_held_out(folder):
    data = opened(folder, valid_fraction=0.3, batch=64)
    windows = data.train_tokens - 16
    tokens, it = np.asarray(data.tokens).copy(), data.train()
    seen = np.concatenate([next(it)["tokens"] for _ in range(-(-windows // 64))])[:windows]
    expected = np.lib.stride_tricks.sliding_window_view(tokens[: data.train_range[1]], 17)
    assert sorted(map(tuple, seen)) == sorted(map(tuple, expected))
    assert data.valid_range == (data.train_range[1], len(tokens))


def test_rows_of_a_pipeline(folder):
    """Any rows of the batches of one process, and a position that holds for any others."""
    data = opened(folder)
    whole, odd = data.train(), data.train(np.array([1, 2, 7]))
    for _ in range(5):
        assert np.array_equal(next(odd)["tokens"], next(whole)["tokens"][[1, 2, 7]])
    assert odd.get_state() == whole.get_state()


def test_the_second_time_nothing_is_written(folder):
    first = opened(folder)
    before = (folder / "tokens" / "manifest.json").stat()
    again = opened(folder)
    assert (folder / "tokens" / "manifest.json").stat() == before
    assert again.identity == first.identity
    assert again.notes == []


def test_identity_tells_what_a_resumed_run_needs(folder):
    data = opened(folder)
    assert json.loads(json.dumps(data.identity)) == data.identity
    for change in ({"seed": 1}, {"batch": 4}, {"context": 8}, {"valid_fraction": 0.1}):
        assert opened(folder, **change).identity != data.identity
    # The prepared folder stands for the text that it was made from.
    assert opened(folder, spec=f"bin:{folder / 'tokens'}").identity == data.identity


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda texts: (texts / "a.txt").write_text("the quick"),
            "a.txt had 2,000 bytes and has 9",
        ),
        (lambda texts: (texts / "a.txt").unlink(), "a.txt is gone"),
        (lambda texts: (texts / "c.txt").write_text("!"), "c.txt is new"),
        (
            lambda texts: (texts / "a.txt").write_text("The quick brown fox " * 100),
            "the same sizes have other contents",
        ),
        (
            lambda texts: [(texts / f"{i}.txt").write_text("!") for i in range(9)],
            "and 6 more changes",
        ),
    ],
)
def test_a_text_that_changed_is_refused(folder, change, says):
    opened(folder)
    change(folder / "texts")
    with pytest.raises(DataProblem, match="not the one that the tokens were prepared") as caught:
        opened(folder)
    assert caught.value.exit_code == 5
    assert says in caught.value.why
    assert f"--data bin:{folder / 'tokens'}" in caught.value.fix
    assert opened(folder, spec=f"bin:{folder / 'tokens'}").train_tokens


def test_another_spec_is_another_text_unless_it_reads_the_same(folder):
    opened(folder)
    with pytest.raises(DataProblem, match=r"prepared from text:.*, not from pydoc") as caught:
        opened(folder, spec="pydoc")
    assert caught.value.exit_code == 5
    shutil.copytree(folder / "texts", folder / "moved")
    assert opened(folder, spec=f"text:{folder / 'moved'}").notes == []


def test_a_text_that_is_gone_leaves_the_prepared_tokens(folder):
    first = opened(folder)
    shutil.rmtree(folder / "texts")
    data = opened(folder)
    assert len(data.notes) == 1
    assert "is gone; using the tokens" in data.notes[0]
    assert data.identity == first.identity
    with pytest.raises(DataProblem, match="there is no text"):
        opened(folder, spec=f"text:{folder / 'never'}")


def test_another_min_freq_is_refused(folder):
    assert "<UNK>" in opened(folder, min_freq=150).notes[0]
    with pytest.raises(DataProblem, match="min_freq is 1, and was 150") as caught:
        opened(folder)
    assert caught.value.exit_code == 5


def test_the_vocabulary_of_a_model_is_kept(folder):
    mine = CharTokenizer.build(["the quick"])
    data = opened(folder, tokenizer=mine)
    assert data.tokenizer == mine
    assert "are <UNK>" in data.notes[0]
    assert opened(folder, tokenizer=mine).tokenizer == mine
    other = CharTokenizer.build(["the quick!"])
    for spec in (f"text:{folder / 'texts'}", f"bin:{folder / 'tokens'}"):
        with pytest.raises(DataProblem, match="another vocabulary than the model") as caught:
            opened(folder, spec=spec, tokenizer=other)
        assert caught.value.exit_code == 5
        assert "'!'" in caught.value.why


def test_two_processes_may_prepare_at_once(folder, monkeypatch):
    def too_late(spec, where, *rest, **options):
        prepare(spec, where, *rest, **options)
        return prepare(spec, where, *rest, **options)

    monkeypatch.setattr("data_pipelines.token_files.prepare", too_late)
    assert opened(folder).train_tokens
    assert sorted(os.listdir(folder)) == ["texts", "tokens"]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_raw_token_file(tmp_path, dtype):
    np.arange(5000, dtype=dtype).tofile(tmp_path / "train.bin")
    option = "?dtype=uint32" if dtype == "uint32" else ""
    data = open_data(f"bin:{tmp_path / 'train.bin'}{option}", folder=tmp_path / "none", **SIZES)
    assert (data.tokenizer, data.vocab_size, data.vocab_needed) == (None, None, 5000)
    assert np.array_equal(data.tokens, np.arange(5000))
    assert data.identity["dtype"] == dtype
    assert "tokens_sha256" in data.identity
    assert np.array_equal(data.valid()[0]["tokens"][1], 4750 + 16 + np.arange(17))
    assert os.listdir(tmp_path) == ["train.bin"]


@pytest.mark.parametrize(
    ("name", "says", "code"),
    [
        ("empty.bin", "it is empty", 3),
        ("odd.bin", "5 bytes are not a whole number of uint16", 3),
        ("six.bin?dtype=uint32", "6 bytes are not a whole number of uint32", 3),
        ("six.bin?dtype=int8", "dtype 'int8' cannot be used", 2),
        ("missing.bin", "no token file", 3),
        ("folder", "not an intact folder of prepared tokens", 3),
        ("folder?dtype=uint16", "a prepared folder has its own", 2),
    ],
)
def test_what_is_no_token_file(tmp_path, name, says, code):
    (tmp_path / "folder").mkdir()
    for file, size in {"empty.bin": 0, "odd.bin": 5, "six.bin": 6}.items():
        (tmp_path / file).write_bytes(b"\1" * size)
    with pytest.raises(DataProblem, match=says) as caught:
        open_data(f"bin:{tmp_path / name}", folder=tmp_path / "none", **SIZES)
    assert caught.value.exit_code == code


def test_a_text_shorter_than_the_context(folder):
    for wrong in ({"context": 4500}, {"context": 300}):
        with pytest.raises(DataProblem, match="too short for a context") as caught:
            opened(folder, **wrong)
        assert caught.value.exit_code == 3
        assert "4,402 tokens, 4,182 to train on and 220 held out" in caught.value.why
        assert f"each part needs {wrong['context'] + 1:,}" in caught.value.why
        assert "--model.context" in caught.value.fix
    # The longest context that fits: one window on each side.
    assert len(opened(folder, context=219).valid()) == 1
    with pytest.raises(DataProblem):
        opened(folder, context=220)
    assert len(opened(folder, context=4401, valid_fraction=0.0).valid()) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"context": 0}, {"batch": 0}, {"seed": -1}, {"valid_fraction": 1.1}, {"spec": "pydok"}],
)
def test_senseless_requests_write_nothing(folder, wrong):
    with pytest.raises(DataProblem) as caught:
        opened(folder, **wrong)
    assert caught.value.exit_code == 2
    assert os.listdir(folder) == ["texts"]


def test_a_damaged_folder_is_refused(folder):
    opened(folder)
    os.truncate(folder / "tokens" / "tokens.bin", 100)
    with pytest.raises(DataProblem, match=r"tokens.bin has 100 bytes; the manifest says 8,804"):
        opened(folder)


@pytest.mark.parametrize("spec", ["text:{}/texts", "bin:{}/tokens"])
def test_tokens_that_were_overwritten_are_refused(folder, spec):
    opened(folder)
    path = folder / "tokens" / "tokens.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataProblem, match="not an intact folder") as caught:
        opened(folder, spec=spec.format(folder))
    assert caught.value.exit_code == 3
    assert "tokens.bin is not the one" in caught.value.why


@pytest.mark.slow
def test_subwords_are_prepared_into_the_folder(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(200)))
    options = {"folder": tmp_path / "tokens", "tokenizer": "gpt2", **SIZES}
    data = open_data(f"jsonl:{path}", **options)
    assert (data.vocab_size, data.tokenizer.end_of_text) == (50257, 50256)
    assert data.identity["tokenizer"] == data.tokenizer.digest
    assert (
        data.tokenizer.decode(data.tokens[:8])
        == "text number 0<|endoftext|>text number 1<|endoftext|>"
    )
    assert open_data(f"jsonl:{path}", **options).identity == data.identity
    # A folder is opened with the tokeniser that it has, unless another is asked for.
    spec = f"bin:{tmp_path / 'tokens'}"
    assert open_data(spec, folder="", **SIZES).identity == data.identity
    for other in ({"tokenizer": "chars"}, {"tokenizer": CharTokenizer.build(["a"])}):
        with pytest.raises(DataProblem, match="prepared tokens") as caught:
            open_data(f"jsonl:{path}", **options | other)
        assert caught.value.exit_code == 5
    path.write_text(path.read_text().replace("number 7", "number x"))
    with pytest.raises(DataProblem, match="not the one that the tokens were prepared from"):
        open_data(f"jsonl:{path}", **options)


@pytest.mark.slow
def test_segments_of_prepared_tokens(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n' * 200)
    options = {"folder": tmp_path / "tokens", "segments": True, **SIZES}
    data = open_data(f"jsonl:{tmp_path}", tokenizer="gpt2", **options)
    for batch in (next(data.train()), data.valid()[0]):
        assert batch["segments"].shape == batch["tokens"].shape
        ends = (batch["tokens"][:, :-1] == 50256).astype(int)
        assert np.array_equal(np.diff(batch["segments"], axis=1), ends)
        assert ends.sum() > 3
    with pytest.raises(DataProblem, match="marks where a document ends") as caught:
        open_data("pydoc", **options | {"folder": tmp_path / "chars"})
    assert caught.value.exit_code == 2
