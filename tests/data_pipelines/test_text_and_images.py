"""Mixed batches of text and of images: shares, order, and resuming."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.mixture_spec import kinds_of
from data_pipelines.pipelines import open_data
from data_pipelines.text_and_images import TextAndImages

SIZES = {"context": 16, "batch": 4, "seed": 3, "valid_fraction": 0.2}
READS_BOTH = {"side": 4, "patch": 4, "caption": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two texts and a folder of images with captions."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "low.txt").write_text("abcdefgh " * 60)
    (folder / "high.txt").write_text("ABCDEFGH " * 60)
    (folder / "pictures").mkdir()
    images, annotations = [], []
    for i in range(20):
        Image.new("RGB", (6, 6), (10 * i, 0, 0)).save(folder / "pictures" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png"})
        annotations.append({"image_id": i, "caption": f"{'abcdefgh'[i % 8]} bed"})
    content = json.dumps({"images": images, "annotations": annotations})
    (folder / "pictures" / "captions.json").write_text(content)
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.chdir(root)


MIX = "mix:1*text:low.txt,3*images:pictures"


@pytest.fixture(scope="module")
def data(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return open_data(MIX, folder=root / "data", **SIZES, **READS_BOTH)


def test_each_kind_has_its_share_of_the_batches(data):
    assert isinstance(data, TextAndImages)
    batches = data.train()
    kinds = ["images" in next(batches) for _ in range(40)]
    for n in range(1, 41):
        assert abs(kinds[:n].count(False) - n / 4) < 1
    assert data.notes[0] == "25.00% of batches are text, the others images with captions"


def test_a_batch_is_of_one_kind_with_the_shapes_of_its_kind(data):
    batches = data.train()
    for _ in range(4):
        batch = next(batches)
        if "images" in batch:
            assert batch["images"].shape == (4, 4, 4, 3)
            assert batch["tokens"].shape == batch["mask"].shape == (4, 8)
        else:
            assert batch.keys() == {"tokens"}
            assert batch["tokens"].shape == (4, 17)


def test_the_text_is_that_of_a_run_without_images(root, data):
    alone = open_data("mix:1*text:low.txt", folder=root / "alone", **SIZES).train()
    batches = data.train()
    for batch in (next(batches) for _ in range(24)):
        if "images" not in batch:
            np.testing.assert_array_equal(batch["tokens"], next(alone)["tokens"])


@pytest.mark.parametrize("stop", [0, 3, 7])
def test_a_stored_position_goes_on_with_the_next_batch(data, stop):
    one, two = data.train(), data.train(np.array([1, 3]))  # another process's rows
    for _ in range(stop):
        next(one)
    two.set_state(json.loads(json.dumps(one.get_state())))
    for _ in range(5):
        expected, found = next(one), next(two)
        assert expected.keys() == found.keys()
        for name, rows in expected.items():
            np.testing.assert_array_equal(found[name], rows[[1, 3]])


def test_held_out_batches_are_of_both_kinds(data):
    every = list(data.valid())
    assert [("images" in batch) for batch in every] == sorted("images" in batch for batch in every)
    some = data.valid(2)
    assert [("images" in batch) for batch in some] == [False, True]
    assert len(data.valid(0)) == 0
    assert data.valid_images == 4
    assert data.valid_tokens == data.text.valid_tokens > 0


def test_several_texts_and_the_identity(root, data):
    spec = "mix:1*text:low.txt,1*text:high.txt,2*images:pictures"
    both = open_data(spec, folder=root / "several", **SIZES, **READS_BOTH)
    assert both.text_share == 0.5
    assert both.text.shares == (0.5, 0.5)
    assert both.identity != data.identity
    assert json.loads(json.dumps(both.identity)) == both.identity
    assert both.tokenizer is both.captioned.tokenizer


@pytest.mark.parametrize(
    ("spec", "sizes", "why"),
    [
        (MIX, {}, "images with captions cannot be mixed"),
        ("mix:1*images:pictures", READS_BOTH, "one source of a mixture"),
        (f"{MIX},1*images:pictures", READS_BOTH, "one source of a mixture"),
    ],
)
def test_what_cannot_be_mixed(tmp_path, spec, sizes, why):
    with pytest.raises(DataProblem, match="not a mixture") as caught:
        open_data(spec, folder=tmp_path / "data", **SIZES, **sizes)
    assert why in caught.value.why
    assert caught.value.exit_code == USAGE


def test_captions_beside_raw_tokens_need_a_tokeniser(root, tmp_path):
    np.arange(400, dtype=np.uint16).tofile(root / "raw.bin")
    with pytest.raises(DataProblem, match="cannot be tokenised") as caught:
        open_data(f"mix:1*bin:{root}/raw.bin,1*images:pictures", folder=tmp_path / "data",
                  **SIZES, **READS_BOTH)  # fmt: skip
    assert caught.value.exit_code == USAGE


def test_the_kinds_of_a_spec():
    assert kinds_of("pydoc") == kinds_of("mix:1*pydoc,2*text:low.txt") == {"text"}
    assert kinds_of("shapes:28") == {"images"}
    assert kinds_of(MIX) == {"text", "images"}


def test_a_side_is_a_multiple_of_the_models_patch(tmp_path):
    with pytest.raises(DataProblem, match="cannot be 6 pixels wide") as caught:
        open_data("images:pictures", folder=tmp_path / "data", **SIZES,
                  **READS_BOTH | {"side": 6})  # fmt: skip
    assert "a multiple of 4" in caught.value.why
