import io
import json
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.captions.examples import is_caption_source
from data_pipelines.captions.shapes_dataset import Shapes
from data_pipelines.errors import DataProblem
from data_pipelines.pipelines import open_data
from tests.data_pipelines.captioned_on_disk import coco_features, picture, write_coco

SIZES = {"context": 12, "batch": 4, "tokenizer": "gpt2", "side": 14}


class Flickr(tfds.core.GeneratorBasedBuilder):
    """Another form: captions are a list of texts, and nothing names the image."""

    VERSION = tfds.core.Version("1.0.0")
    BAD: ClassVar = (3, 8)

    def _info(self):
        captions = tfds.features.Sequence(tfds.features.Text())
        features = {"image": tfds.features.Image(), "captions": captions}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            image = picture(i)
            image = image[: len(image) // 2] if i in self.BAD else image
            captions = [f"picture {i}", "  "] if i % 5 else []
            yield i, {"image": io.BytesIO(image), "captions": captions}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write_coco(folder)
    Flickr(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))


def number(image):
    """Which picture an image shows; 0 to 29."""
    return round(float(image[..., 0].mean()) / 3)


def test_shapes_have_the_features_of_coco(tmp_path):
    theirs = coco_features()
    ours = Shapes(side=56, data_dir=tmp_path).info.features
    assert ours.keys() == theirs.keys() - {"objects"}
    for name in ours:
        assert ours[name].np_dtype == theirs[name].np_dtype
    texts = [each["captions"].feature for each in (ours, theirs)]
    assert {name: f.np_dtype for name, f in texts[0].items()} == {
        name: f.np_dtype for name, f in texts[1].items()
    }


@pytest.mark.parametrize("spec", ["coco_captions", "tfds:coco_captions", "tfds:coco_captions/2014"])
def test_images_and_captions_go_together(spec, tmp_path):
    data = open_data(spec, folder=tmp_path / "data", **SIZES)
    assert (data.train_images, data.valid_images) == (30, 10)
    assert data.identity["dataset"] == "coco_captions/2014/1.1.0"
    assert data.identity["splits"] == ["train", "val"]
    it = data.train()
    seen = set()
    for _ in range(15):
        batch = next(it)
        for image, tokens, mask in zip(
            batch["images"], batch["tokens"], batch["mask"], strict=True
        ):
            text = data.tokenizer.decode(tokens[: mask.sum() - 1])
            assert text.startswith(f"train image {number(image)} caption ")
            seen.add(text)
    assert len(seen) == 60  # two epochs, and each took another caption of every image
    images, captions = data.retrieval()
    for image, sentences in zip(np.concatenate(list(images)), captions, strict=True):
        assert sentences == [f"val image {number(image)} caption {k}" for k in range(5)]


def test_a_split_that_is_named_is_held_out_as_asked(tmp_path):
    """The protocol of papers: all of the test split, five captions of each image."""
    data = open_data("coco_captions:test", folder=tmp_path / "a", valid_fraction=1.0, **SIZES)
    images, captions = data.retrieval()
    assert sorted(map(number, np.concatenate(list(images)))) == list(range(12))
    assert all(
        len(sentences) == 5 and sentences[0].startswith("test image") for sentences in captions
    )
    assert (data.train_images, data.valid_images) == (0, 12)
    both = open_data("coco_captions:train+restval", folder=tmp_path / "b", **SIZES)
    assert (both.train_images, both.valid_images) == (32, 1)
    assert both.identity["splits"] == ["train+restval", ""]
    with pytest.raises(DataProblem, match="no split 'none'") as caught:
        open_data("coco_captions:none", folder=tmp_path / "c", **SIZES)
    assert caught.value.exit_code == 2


def test_what_cannot_be_used_is_counted(tmp_path):
    folder = tmp_path / "data"
    data = open_data("tfds:flickr:test", folder=folder, valid_fraction=0.25, **SIZES)
    assert (data.train_images, data.valid_images) == (11, 3)
    notes = "\n".join(data.notes)
    assert "2 images that cannot be read are left out: example " in notes
    assert "4 images that have no caption are left out: example " in notes
    assert "16 captions that say nothing are left out" in notes
    assert json.loads((folder / "manifest.json").read_text())["captions"] == 14
    ids = [i for batch in data.valid() for i in batch["image_id"]]
    it = data.train()
    trained = {i for _ in range(30) for i in next(it)["image_id"]}
    assert trained | set(ids) == set(range(14))
    assert not trained & set(ids)


def test_a_fault_that_shows_only_when_decoded_names_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.captions.prepare.BUDGET", 0)
    data = open_data("tfds:flickr:test", folder=tmp_path / "data", valid_fraction=0.0, **SIZES)
    with pytest.raises(DataProblem, match="not a readable image") as caught:
        [next(it) for it in [data.train()] for _ in range(9)]
    assert caught.value.where.startswith("example ")


def test_a_dataset_of_text_is_not_taken_for_images():
    assert is_caption_source("tfds:coco_captions")
    assert is_caption_source("tfds:flickr:test")
    for spec in ("pydoc", "text:x", "wikipedia", "bin:x", "c4", "tfds:x#title"):
        assert not is_caption_source(spec)
    with pytest.raises(DataProblem, match="not on this disk"):
        is_caption_source("tfds:nothing")


def test_what_was_prepared_outlives_the_dataset(tmp_path, monkeypatch):
    first = open_data("coco_captions", folder=tmp_path / "data", **SIZES)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    again = open_data("coco_captions", folder=tmp_path / "data", **SIZES)
    assert again.identity == first.identity
    assert "coco_captions is gone" in again.notes[0]
    with pytest.raises(DataProblem, match="not on this disk"):
        open_data("coco_captions", folder=tmp_path / "other", **SIZES)
