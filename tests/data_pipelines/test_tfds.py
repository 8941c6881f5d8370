import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tokenizers import Tokenizer, models, pre_tokenizers

import data_pipelines
from data_pipelines.command import main
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.loader import Validation
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import prepare
from data_pipelines.sources import open_text
from data_pipelines.streamed_dataset import StreamedDataset

ROOT = Path(data_pipelines.__file__).parents[1]
GPT2 = GPT2Tokenizer()
SIZES = {"folder": "", "context": 16, "batch": 4, "tokenizer": "gpt2"}
N = 60


class TinyWiki(tfds.core.GeneratorBasedBuilder):
    """Sixty documents of different lengths, each told apart by its words."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="20230601.en")]

    def _info(self):
        features = {"title": tfds.features.Text(), "text": tfds.features.Text()}
        features["views"] = np.int64
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(N):
            text = f"document {i} says ünï " * (i % 7)  # every seventh is empty
            yield i, {"title": f"title {i}", "text": text, "views": i}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyWiki(data_dir=folder, config="20230601.en", file_format="array_record")
    builder.download_and_prepare()
    (folder / "tiny_wiki").rename(folder / "wikipedia")
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))


def all_texts(spec="wikipedia"):
    return [text for part in open_text(spec).parts for text, _ in part.read(1)]


@pytest.mark.parametrize(
    "spec",
    [
        "wikipedia",
        "wikipedia:train",
        "tfds:wikipedia",
        "tfds:wikipedia/20230601.en",
        "tfds:wikipedia/20230601.en/1.0.0:train#text",
    ],
)
def test_documents_of_a_dataset(spec):
    texts = all_texts(spec)
    assert sorted(texts) == sorted(f"document {i} says ünï " * (i % 7) for i in range(N))
    assert open_text(spec).records["examples"] == N


def test_another_field_and_a_slice_of_the_split():
    assert sorted(all_texts("tfds:wikipedia#title")) == sorted(f"title {i}" for i in range(N))
    assert all_texts("wikipedia:train[:25%]") == all_texts()[: N // 4]


@pytest.mark.parametrize(
    ("spec", "says", "code"),
    [
        ("c4", "c4/en is not on this disk", 3),
        ("tfds:wikipedia/none", "not on this disk", 3),
        ("wikipedia:test", "no split 'test'", 2),
        ("tfds:wikipedia#views", "no text 'views'", 2),
        ("tfds:wikipedia#body", "no text 'body'", 2),
    ],
)
def test_what_is_not_there(spec, says, code):
    with pytest.raises(DataProblem, match=says) as caught:
        open_text(spec)
    assert caught.value.exit_code == code
    if code == 3:
        assert "download_and_prepare()" in caught.value.fix
        assert "TFDS_DATA_DIR" in caught.value.fix


def test_a_dataset_that_cannot_be_read_at_random(root, tmp_path, monkeypatch):
    made = tmp_path / "wikipedia" / "1.0.0"
    made.mkdir(parents=True)
    for file in (root / "wikipedia" / "20230601.en" / "1.0.0").iterdir():
        text = file.read_text() if file.suffix == ".json" else ""
        (made / file.name).write_text(text.replace("array_record", "tfrecord"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataProblem, match="has no random access") as caught:
        open_text("tfds:wikipedia")
    assert "file_format='array_record'" in caught.value.fix


def unpacked(data, batches):
    """The documents that went by, from the tokens of training batches."""
    it = data.train()
    rows = np.concatenate([next(it)["tokens"] for _ in range(batches)])
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])  # windows share their border token
    stream = np.concatenate([rows[:1, 0], rows[:, 1:].reshape(-1)])
    ends = np.flatnonzero(stream == GPT2.end_of_text)
    return [GPT2.decode(part[part != GPT2.end_of_text]) for part in np.split(stream, ends)]


def test_an_epoch_takes_each_document_once():
    data = open_data("wikipedia", valid_fraction=0.2, **SIZES)
    assert isinstance(data, StreamedDataset)
    expected = sorted(text for text in all_texts()[:48] if text)
    found = unpacked(data, 100)
    assert sorted(found[: len(expected)]) == expected
    assert sorted(found[len(expected) : 2 * len(expected)]) == expected
    assert found[: len(expected)] != found[len(expected) : 2 * len(expected)]


def test_held_out_documents_are_the_last():
    data = open_data("wikipedia", valid_fraction=0.2, **SIZES)
    held_out = "".join(text + "<|endoftext|>" for text in all_texts()[48:] if text)
    batches = data.valid()
    rows = np.concatenate([batch["tokens"] for batch in batches])
    tokens = np.concatenate([rows[:1, 0], rows[:, 1:].reshape(-1)])
    assert held_out.startswith(GPT2.decode(tokens).rstrip("\ufffd"))
    assert len(tokens) > len(GPT2.encode(held_out)) - 17 - 20 * 12  # "<|endoftext|>" is 7 tokens
    few = data.valid(2)
    assert len(few) == 2
    assert few[0]["tokens"].shape == (4, 17)
    assert np.array_equal(few[1]["tokens"], data.valid(2)[1]["tokens"])
    assert not list(open_data("wikipedia", valid_fraction=0.0, **SIZES).valid())


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_all_held_out_documents_are_taken_a_batch_at_a_time(batch, segments, monkeypatch):
    sizes = SIZES | {"batch": batch}
    data = open_data("wikipedia", valid_fraction=0.5, segments=segments, **sizes)
    tokens = [id for text in all_texts()[30:] if text for id in [*GPT2.encode(text), 50256]]
    end = 50256 if segments else None
    expected = Validation(np.asarray(tokens, np.int32), 16, batch, end_of_text=end)
    batches = data.valid()
    for _ in range(2):
        for one, two in zip(batches, expected, strict=True):
            assert one.keys() == two.keys()
            assert all(np.array_equal(one[name], two[name]) for name in one)
    encoded, encode = [], GPT2Tokenizer.encode
    monkeypatch.setattr(
        GPT2Tokenizer, "encode", lambda self, text: encoded.append(text) or encode(self, text)
    )
    next(iter(batches))
    assert (len(encoded) < 30) == (batch < 1000)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_saved_position_gives_the_next_batch(steps, segments):
    data = open_data("wikipedia", seed=5, segments=segments, **SIZES)
    it = data.train()
    for _ in range(steps):
        next(it)
    state = json.loads(json.dumps(it.get_state()))
    expected = [next(it) for _ in range(30)]
    assert expected[0].keys() == ({"tokens", "segments"} if segments else {"tokens"})
    for restored in (it, open_data("wikipedia", seed=5, segments=segments, **SIZES).train()):
        restored.set_state(state)
        assert restored.get_state() == state
        for batch in expected:
            again = next(restored)
            assert all(np.array_equal(again[key], batch[key]) for key in batch)


def test_segments_change_after_each_end():
    batch = next(open_data("wikipedia", segments=True, **SIZES).train())
    ends = (batch["tokens"][:, :-1] == GPT2.end_of_text).astype(int)
    assert ends.sum() > 0
    assert np.array_equal(np.diff(batch["segments"], axis=1), ends)
    assert not batch["segments"][:, 0].any()


def test_processes_share_out_the_batches_of_one():
    """Rows of the same batches, and a position that holds for any number of processes."""
    data = open_data("wikipedia", valid_fraction=0.0, **SIZES)
    whole, halves = data.train(), [data.train(np.array(rows)) for rows in ([0, 1], [2, 3])]
    for _ in range(10):
        parts = [next(half)["tokens"] for half in halves]
        assert np.array_equal(np.concatenate(parts), next(whole)["tokens"])
    assert whole.get_state() == halves[1].get_state()


def test_what_a_stream_tells():
    data = open_data("wikipedia", valid_fraction=0.1, **SIZES)
    assert json.loads(json.dumps(data.identity)) == data.identity
    assert data.identity["dataset"] == "tiny_wiki/20230601.en/1.0.0"
    assert (data.identity["examples"], data.identity["split"]) == (N, "train")
    assert (data.vocab_size, data.vocab_needed, data.spec) == (50257, 50257, "wikipedia")
    exact = sum(len(GPT2.encode(text)) + 1 for text in all_texts())  # all are in the sample
    assert data.train_tokens + data.valid_tokens == pytest.approx(exact, abs=2)
    assert "6 of 60 documents are held out" in data.notes[0]
    for change in ({"seed": 1}, {"batch": 2}, {"valid_fraction": 0.3}):
        assert open_data("wikipedia", **({"valid_fraction": 0.1} | SIZES | change)).identity != (
            data.identity
        )


def test_too_few_documents_or_none():
    with pytest.raises(DataProblem, match="too few documents"):
        open_data("wikipedia:train[:1]", **SIZES)
    empty = all_texts().index("")
    with pytest.raises(DataProblem, match="are empty"):
        open_data(f"wikipedia:train[{empty}:{empty + 1}]", valid_fraction=0.0, **SIZES)


@pytest.mark.slow
def test_prepared_is_the_fast_path(tmp_path):
    made = prepare("wikipedia", tmp_path / "out", tokenizer=GPT2)
    texts = [text for text in all_texts() if text]
    assert (made["documents"], made["dtype"], made["min_freq"]) == (len(texts), "uint16", None)
    assert made["source"]["dataset"] == "tiny_wiki/20230601.en/1.0.0"
    data = open_data(f"bin:{tmp_path / 'out'}", **SIZES)
    expected = np.concatenate([np.append(GPT2.encode(text), GPT2.end_of_text) for text in texts])
    assert np.array_equal(data.tokens, expected[:-1])


def test_a_tokenizer_of_the_user_without_an_end(tmp_path):
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "document": 1, "says": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    sizes = SIZES | {"tokenizer": str(tmp_path), "context": 8}
    batch = next(open_data("wikipedia", **sizes).train())["tokens"]
    assert set(np.unique(batch)) == {0, 1, 2}
    with pytest.raises(DataProblem, match="marks where a document ends"):
        open_data("wikipedia", segments=True, **sizes)


@pytest.mark.slow
def test_tensorflow_is_never_imported():
    code = (
        "import sys\nfrom data_pipelines.pipelines import open_data\n"
        "data = open_data('wikipedia', folder='', context=8, batch=2, tokenizer='gpt2')\n"
        "print(next(data.train())['tokens'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "(2, 9) False"


def test_inspect_and_bench(capsys, monkeypatch):
    monkeypatch.setattr("data_pipelines.reports._BATCHES", 20)
    assert main(["inspect", "wikipedia", "--tokenizer", "gpt2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    exact = sum(len(GPT2.encode(text)) + 1 for text in all_texts())
    assert (report["documents"], report["tokens_are_estimated"]) == (N, True)
    assert report["tokens"] == pytest.approx(exact, abs=1)
    assert main(["bench", "wikipedia", "--context", "8", "--batch", "2", "--json"]) == 0
    rates = json.loads(capsys.readouterr().out)["tokens_per_second"]
    assert rates.keys() == {"encoding", "streamed"}
    assert min(rates.values()) > 0
