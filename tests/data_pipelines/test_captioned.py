import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_pipelines
from data_pipelines.captions import shapes_dataset
from data_pipelines.captions.prepare import prepare_images
from data_pipelines.captions.prepared import read_captions_manifest, read_rows
from data_pipelines.captions.shapes import captions, draw, scene
from data_pipelines.captions.source import shapes_side
from data_pipelines.captions.tokens import encode_caption, pad
from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.pipelines import open_data
from data_pipelines.words import build_words

ROOT = Path(data_pipelines.__file__).parents[1]
SIZES = {"context": 20, "batch": 8, "tokenizer": "words"}
TRAIN, HELD_OUT = 60, 21


@pytest.fixture(scope="module")
def few():
    """Shapes, but not so many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_dataset, "TRAIN", TRAIN)
        patch.setattr(shapes_dataset, "HELD_OUT", HELD_OUT)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, few):
    """Where shapes are prepared."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    open_data("shapes:28", folder=folder, **SIZES)
    return folder


def opened(folder, spec="shapes:28", **changes):
    return open_data(spec, **{"folder": folder, **SIZES} | changes)


def number(row):
    """Which scene a row of the prepared folder shows."""
    return int(Path(row.name).stem)


def test_what_is_written(folder):
    manifest = read_captions_manifest(folder)
    rows = read_rows(folder, manifest)
    assert manifest["images"] == {"train": TRAIN, "valid": HELD_OUT}
    assert manifest["captions"] == 5 * len(rows) == 5 * (TRAIN + HELD_OUT)
    assert sorted(number(row) for row in rows if row.split == "train") == list(range(TRAIN))
    images = np.fromfile(folder / "images.bin", np.uint8).reshape(-1, 28, 28, 3)
    for row, image in zip(rows, images, strict=True):
        made = scene(number(row), row.split == "valid")
        assert row.captions == captions(made)
        assert np.array_equal(image, draw(made, 28))
    assert (folder / "shapes" / "1.0.0" / "dataset_info.json").is_file()
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_drawn_twice_it_is_the_same(folder, tmp_path):
    again = opened(tmp_path / "again")
    assert again.identity == opened(folder).identity
    assert json.loads(json.dumps(again.identity)) == again.identity


def test_a_training_batch(folder):
    data = opened(folder)
    rows = read_rows(folder, read_captions_manifest(folder))
    batch = next(data.train())
    kinds = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert kinds == {
        "tokens": ((8, 20), "int32"),
        "mask": ((8, 20), "int32"),
        "images": ((8, 28, 28, 3), "uint8"),
        "image_id": ((8,), "int32"),
    }
    for i in range(8):
        row = rows[batch["image_id"][i]]
        assert row.split == "train"
        assert np.array_equal(batch["images"][i], draw(scene(number(row)), 28))
        length = batch["mask"][i].sum()
        assert batch["mask"][i].tolist() == [1] * length + [0] * (20 - length)
        sentences = batch["tokens"][i][:length]
        assert sentences[-1] == data.tokenizer.end_of_text
        assert data.tokenizer.decode(sentences[:-1]) in row.captions


def test_an_epoch_takes_each_image_once_and_captions_take_turns(folder):
    data = opened(folder, batch=10)
    it = data.train()
    epochs = []
    for _ in range(5):
        batches = [next(it) for _ in range(TRAIN // 10)]
        ids = np.concatenate([batch["image_id"] for batch in batches])
        assert sorted(ids) == list(range(TRAIN))
        sentences = np.concatenate([batch["tokens"] for batch in batches])
        epochs.append((ids, dict(zip(ids.tolist(), map(tuple, sentences.tolist()), strict=True))))
    assert not np.array_equal(epochs[0][0], epochs[1][0])  # another order
    for image in range(TRAIN):  # five epochs show the five captions of each
        assert len({sentences[image] for _, sentences in epochs}) == 5
    other = next(opened(folder, batch=10, seed=1).train())
    first = next(data.train())
    assert not np.array_equal(other["image_id"], first["image_id"])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_a_fresh_process_goes_on_where_this_one_stopped(folder, steps, tmp_path):
    data = opened(folder, seed=5)
    it = data.train()
    for _ in range(steps):
        next(it)
    state = json.dumps(it.get_state())
    code = (
        "import json, sys, numpy as np\n"
        "from data_pipelines.pipelines import open_data\n"
        "folder, state, out = sys.argv[1:]\n"
        "data = open_data(f'bin:{folder}', folder='', context=20, batch=8, seed=5,"
        " tokenizer='words')\n"
        "it = data.train()\n"
        "it.set_state(json.loads(state))\n"
        "np.savez(out, **{f'{i}_{k}': v for i in range(12) for k, v in next(it).items()})\n"
    )
    argv = [sys.executable, "-c", code, str(folder), state, str(tmp_path / "got.npz")]
    subprocess.run(argv, cwd=ROOT, env=os.environ, check=True)
    with np.load(tmp_path / "got.npz") as got:
        for i in range(12):
            batch = next(it)
            assert all(np.array_equal(got[f"{i}_{name}"], batch[name]) for name in batch)


def test_processes_share_out_the_batches_of_one(folder):
    data = opened(folder)
    whole, parts = data.train(), [data.train(np.array(rows)) for rows in ([0, 1, 2], [3], [4, 7])]
    for _ in range(30):
        batch = next(whole)
        for it, rows in zip(parts, ([0, 1, 2], [3], [4, 7]), strict=True):
            part = next(it)
            assert all(np.array_equal(part[name], batch[name][rows]) for name in batch)
    assert all(it.get_state() == whole.get_state() for it in parts)


def test_validation_is_always_the_same(folder):
    data = opened(folder, seed=3)
    batches = data.valid()
    assert (len(batches), len(batches[2]["tokens"])) == (3, 5)
    ids = np.concatenate([batch["image_id"] for batch in batches])
    assert ids.tolist() == list(range(TRAIN, TRAIN + HELD_OUT))
    again = opened(folder, seed=99).valid()
    for one, two in zip(batches, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    rows = read_rows(folder, read_captions_manifest(folder))
    for place, tokens, mask in [
        (i, t, m)
        for batch in batches
        for i, t, m in zip(batch["image_id"], batch["tokens"], batch["mask"], strict=True)
    ]:
        sentences = data.tokenizer.decode(tokens[: mask.sum() - 1])
        assert sentences == rows[place].captions[(place - TRAIN) % 5]
    assert [len(batch["tokens"]) for batch in data.valid(2)] == [8, 8]  # only full ones
    assert len(data.valid(99)) == 3
    assert [len(b["tokens"]) for b in batches[1:]] == [8, 5]


def test_retrieval_takes_all_held_out_images_with_all_their_captions(folder):
    data = opened(folder)
    images, sentences = data.retrieval()
    assert [len(batch) for batch in images] == [8, 8, 5]
    assert len(sentences) == HELD_OUT
    rows = [
        row for row in read_rows(folder, read_captions_manifest(folder)) if row.split == "valid"
    ]
    for image, texts, row in zip(np.concatenate(list(images)), sentences, rows, strict=True):
        assert texts == list(row.captions)
        assert np.array_equal(image, draw(scene(number(row), True), 28))
    every = [text for texts in sentences for text in texts]
    assert len(set(every)) == len(every)
    few, some = data.retrieval(9)
    assert ([len(batch) for batch in few], some) == ([8, 1], sentences[:9])
    made = data.encode(sentences[0])
    assert (made["tokens"].shape, made["tokens"].dtype, made["mask"].dtype) == (
        (5, 20),
        np.int32,
        np.int32,
    )
    assert data.tokenizer.decode(made["tokens"][4][: made["mask"][4].sum() - 1]) == sentences[0][4]


@pytest.mark.parametrize(("tokenizer", "size"), [("words", None), ("gpt2", 50257), ("chars", None)])
def test_tokenisers(folder, tokenizer, size):
    data = opened(folder, tokenizer=tokenizer, context=90)
    assert data.vocab_size == data.vocab_needed == (size or data.tokenizer.vocab_size)
    assert data.notes == []
    rows = read_rows(folder, read_captions_manifest(folder))
    batch = next(data.train())
    end = "\n\n" if tokenizer == "chars" else "<|endoftext|>"
    for tokens, mask, place in zip(batch["tokens"], batch["mask"], batch["image_id"], strict=True):
        text = data.tokenizer.decode(tokens[: mask.sum()])
        assert text.removesuffix(end) in rows[place].captions
        assert text.endswith(end)


def test_what_a_run_keeps_of_a_tokeniser_is_given_back(folder, tmp_path):
    first = opened(folder)
    first.tokenizer.save(tmp_path)
    again = opened(folder, tokenizer=str(tmp_path))
    assert again.identity == first.identity
    assert np.array_equal(next(again.train())["tokens"], next(first.train())["tokens"])


def test_longer_captions_are_cut_and_counted(folder):
    data = opened(folder, context=11)
    lengths = data.captions.lengths
    longer = int((lengths > 11).sum())
    assert 0 < longer < len(lengths)
    assert f"{longer:,} captions ({longer / len(lengths):.2%}) are longer than 11" in data.notes[0]
    batch = next(data.train())
    full = batch["mask"].all(axis=1)
    assert full.any()
    assert data.train_tokens + data.valid_tokens == np.minimum(lengths, 11).sum()
    whole = next(opened(folder).train())
    assert np.array_equal(batch["tokens"], whole["tokens"][:, :11])


@given(
    sentences=st.lists(st.text(max_size=12), min_size=1, max_size=5),
    context=st.integers(1, 9),
)
def test_rows_of_tokens(sentences, context):
    tokenizer = GPT2Tokenizer()
    ids = [encode_caption(caption, tokenizer) for caption in sentences]
    tokens, mask = pad(ids, context, tokenizer)
    assert tokens.shape == mask.shape == (len(sentences), context)
    for row, kept, caption in zip(tokens, mask, ids, strict=True):
        assert row[kept == 1].tolist() == caption[:context].tolist()
        assert (row[kept == 0] == tokenizer.end_of_text).all()
        assert (np.diff(kept) <= 0).all()


def test_what_fills_a_row():
    words, chars = build_words(["a b"]), CharTokenizer.build(["a\n"])
    bare = CharTokenizer(("a", "\n"), specials=())
    for tokenizer, filler in ((words, 0), (chars, 0), (bare, 0), (GPT2Tokenizer(), 50256)):
        tokens, mask = pad([encode_caption("a", tokenizer)], 5, tokenizer)
        assert set(tokens[mask == 0].tolist()) == {filler}


def test_the_folder_is_what_decides(folder, tmp_path):
    with pytest.raises(DataProblem, match="another size") as caught:
        opened(folder, side=56)
    assert (caught.value.exit_code, caught.value.where) == (5, str(folder))
    with pytest.raises(DataProblem, match="not those that were prepared") as caught:
        opened(folder, "shapes:29", side=28)
    assert caught.value.exit_code == 5
    assert "drawn_side: 28 → 29" in caught.value.why
    assert opened(folder, f"bin:{folder}").identity == opened(folder).identity


@pytest.mark.parametrize("name", ["captions.jsonl", "images.bin", "manifest.json"])
def test_a_changed_file_is_found(few, tmp_path, name):
    prepare_images("shapes:14", tmp_path / "data")
    data = bytearray((tmp_path / "data" / name).read_bytes())
    data[10] ^= 1
    (tmp_path / "data" / name).write_bytes(data)
    with pytest.raises(DataProblem, match="not an intact folder of prepared images") as caught:
        opened(tmp_path / "data", "shapes:14")
    assert caught.value.exit_code == 3


def test_a_full_disk_while_drawing_is_told_with_its_path(few, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            prepare_images("shapes:14", tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_side_of_thousands_of_digits():
    with pytest.raises(DataProblem, match="cannot be drawn"):
        shapes_side("shapes:" + "9" * 5000)


def test_an_interrupted_drawing_leaves_nothing(few, tmp_path):
    def stop(stage, done, total):
        if stage == "reading images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "data", progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "changes", "says"),
    [
        ("shapes:0", {}, "cannot be drawn '0' pixels wide"),
        ("shapes:x", {}, "cannot be drawn 'x' pixels wide"),
        ("shapes:", {}, "cannot be drawn '' pixels wide"),
        ("shapes", {"side": 30}, "cannot be 30 pixels wide"),
        ("shapes:30", {}, "cannot be 30 pixels wide"),
        ("shapes", {"side": 0}, "cannot be 0 pixels wide"),
        ("shapes", {"segments": True}, "have no segments"),
        ("shapes", {"tokenizer": "word"}, "unknown tokeniser: 'word'"),
        ("pydoc", {"tokenizer": "words"}, "for captions only"),
        ("shape", {"tokenizer": "chars"}, "unknown data: 'shape'.*did you mean shapes"),
        ("images", {"tokenizer": "gpt2"}, "unknown data: 'images'"),
    ],
)
def test_usage(tmp_path, spec, changes, says):
    with pytest.raises(DataProblem, match=says) as caught:
        opened(tmp_path / "data", spec, **changes)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_same_rows_when_decoded_as_they_come(folder, few, tmp_path, monkeypatch):
    """Of a collection over the budget nothing is kept, and the batches are the same."""
    monkeypatch.setattr("data_pipelines.captions.prepare.BUDGET", 0)
    lazy = opened(tmp_path / "data")
    assert not (tmp_path / "data" / "images.bin").exists()
    one, two = lazy.train(), opened(folder).train()
    for _ in range(10):
        first, second = next(one), next(two)
        assert all(np.array_equal(first[name], second[name]) for name in first)
    wider = opened(tmp_path / "data", side=56)
    assert next(wider.train())["images"].shape == (8, 56, 56, 3)
    prepared = opened(tmp_path / "data", f"bin:{tmp_path / 'data'}")
    assert np.array_equal(prepared.valid()[0]["images"], lazy.valid()[0]["images"])
