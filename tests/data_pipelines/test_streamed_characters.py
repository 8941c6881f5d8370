"""Characters of a streamed dataset: vocabulary, windows, position, memory."""

import gc
import json
import weakref

import numpy as np
import pytest

from data_pipelines import documents, streamed_dataset
from data_pipelines.characters import CharTokenizer
from data_pipelines.command import main
from data_pipelines.errors import DataProblem
from data_pipelines.pipelines import open_data
from data_pipelines.sources import open_text
from data_pipelines.tfds import Texts
from tests.data_pipelines import tfds_on_disk

N = 300
SIZES = {"folder": "", "context": 24, "batch": 2, "tokenizer": "chars", "valid_fraction": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Each document has a character of its own; every seventh is empty."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds_on_disk.write(folder, [f"{chr(0x4E00 + i)} text {i}. " * (i % 7) for i in range(N)])
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))


@pytest.fixture(scope="module")
def all_texts(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root))
        return [text for part in open_text("tfds:tiny_texts").parts for text, _ in part.read(1)]


def opened(**changes):
    return open_data("tfds:tiny_texts", **SIZES | changes)


@pytest.mark.parametrize("count", [2, 50, N, 10 * N])
def test_the_vocabulary_is_that_of_the_first_documents(all_texts, count):
    data = opened(vocab_documents=count)
    first = "".join(text + "\n\n" for text in all_texts[:count] if text)
    assert data.tokenizer == CharTokenizer.build([first])
    assert data.vocab_size == data.vocab_needed == len(set(first)) + 2
    assert (data.tokenizer.unk_id, data.tokenizer.specials) == (1, ("<PAD>", "<UNK>"))
    assert f"that of the first {min(count, N)} documents" in data.notes[1]
    assert ("; 0.00% of the characters" in data.notes[1]) == (count >= N)


def test_min_freq_counts_in_the_first_documents(all_texts):
    first = "".join(text + "\n\n" for text in all_texts[:50] if text)
    found = opened(vocab_documents=50, min_freq=9).tokenizer
    assert found.chars == tuple(sorted(char for char in set(first) if first.count(char) >= 9))


def test_windows_are_filled_across_documents_and_others_are_unknown(all_texts):
    data = opened(vocab_documents=50)
    it = data.train()
    rows = np.concatenate([next(it)["tokens"] for _ in range(400)])
    assert rows.dtype == np.int32
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])  # windows share their border token
    stream = np.concatenate([rows[:1, 0], rows[:, 1:].reshape(-1)])
    train = [data.tokenizer.encode(text + "\n\n").tolist() for text in all_texts[:270] if text]
    length = sum(map(len, train))
    epoch = data.tokenizer.decode(stream[:length]).removesuffix("\n\n").split("\n\n")
    expected = [data.tokenizer.decode(ids).removesuffix("\n\n") for ids in train]
    assert sorted(epoch) == sorted(expected)
    assert epoch != expected  # shuffled over the whole dataset
    assert any("<UNK>" in text for text in epoch)


def test_held_out_documents_are_the_last(all_texts):
    data = opened(vocab_documents=N)
    rows = np.concatenate([batch["tokens"] for batch in data.valid()])
    text = data.tokenizer.decode(np.concatenate([rows[:1, 0], rows[:, 1:].reshape(-1)]))
    held_out = "".join(text + "\n\n" for text in all_texts[270:] if text)
    assert held_out.startswith(text)
    assert len(text) > len(held_out) - 25


def test_a_tokenizer_that_is_given_needs_no_counting(monkeypatch):
    first = opened(vocab_documents=50)
    seen = []
    read = Texts.__getitem__
    monkeypatch.setattr(Texts, "__getitem__", lambda self, i: seen.append(i) or read(self, i))
    again = opened(tokenizer=first.tokenizer, vocab_documents=50)
    assert (again.identity, again.tokenizer) == (first.identity, first.tokenizer)
    assert len(seen) == streamed_dataset._SAMPLE  # those that tell how long the others are
    assert len(again.notes) == 1


@pytest.mark.parametrize("steps", [0, 1, 13])
@pytest.mark.parametrize("rows", [None, np.asarray([1])])
def test_a_saved_position_gives_the_next_batch(steps, rows):
    it = opened(vocab_documents=50).train(rows)
    for _ in range(steps):
        next(it)
    state = json.loads(json.dumps(it.get_state()))
    expected = [next(it)["tokens"] for _ in range(20)]
    restored = opened(vocab_documents=50).train(rows)
    restored.set_state(state)
    assert all(np.array_equal(next(restored)["tokens"], batch) for batch in expected)


@pytest.mark.slow
def test_memory_holds_what_is_read_ahead_and_no_more(monkeypatch):
    monkeypatch.setattr(streamed_dataset, "_AHEAD", 8)
    alive, made = weakref.WeakSet(), []

    class Held(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__

    read = documents.Documents.__getitem__

    def counted(self, i):
        found = read(self, i).view(Held)
        made.append(len(found))
        alive.add(found)
        return found

    monkeypatch.setattr(documents.Documents, "__getitem__", counted)
    it, most = opened(vocab_documents=50).train(), 0
    for step in range(300):
        next(it)
        if step % 20:
            continue
        gc.collect()
        most = max(most, len(alive))
    assert len(made) > N
    assert most <= 8 + 4 + 3  # read ahead, one in each thread's hand, and the one that is cut


def test_counting_holds_one_document(monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Held(str):
        """A text that can be counted."""

        __hash__ = object.__hash__

    read = Texts.__getitem__

    def counted(self, i):
        most.append(len(alive))
        found = Held(read(self, i))
        alive.add(found)
        return found

    monkeypatch.setattr(Texts, "__getitem__", counted)
    documents.characters_of(open_text("tfds:tiny_texts"), N)
    assert (len(most), max(most)) == (N, 1)


def test_counting_can_be_stopped():
    def stop(stage, done, total):
        assert 0 <= done <= total
        raise KeyboardInterrupt(stage)

    with pytest.raises(KeyboardInterrupt, match="counting characters"):
        opened(progress=stop)


@pytest.mark.parametrize(
    ("changes", "says", "code"),
    [
        ({"vocab_documents": 0}, "must be positive", 2),
        ({"segments": True}, "where a document ends", 2),
        ({"vocab_documents": 1}, "documents give no vocabulary", 3),  # the first one is empty
        ({"min_freq": 10**6}, "documents give no vocabulary", 3),
    ],
)
def test_what_cannot_be(changes, says, code):
    with pytest.raises(DataProblem, match=says) as caught:
        opened(**changes)
    assert caught.value.exit_code == code


def test_inspect_counts_characters(capsys, all_texts):
    assert main(["inspect", "tfds:tiny_texts", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["vocab_size"] == len(set("".join(all_texts))) + 3  # two specials, and "\n"
