"""Images with captions of a TFDS dataset on disk in array_record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.captions.drawn_questions import questions
from data_pipelines.captions.source import Example, ImageTextSource, shapes_side
from data_pipelines.errors import DataProblem
from data_pipelines.tfds import builder_of, data_source, example, folder_of, text_of

_HELD_OUT = ("validation", "val", "valid", "test")  # splits, in order of preference


def dataset_has_captions(rest: str) -> bool:
    """Whether `tfds:REST` has the features `image` and `captions`."""
    import tensorflow_datasets as tfds

    found = builder_of(str(folder_of(rest.partition(":")[0]))).info.features
    features = dict(found.items()) if isinstance(found, tfds.features.FeaturesDict) else {}
    texts = getattr(features.get("captions"), "feature", None)
    if isinstance(texts, tfds.features.FeaturesDict):
        texts = dict(texts.items()).get("text")
    image = features.get("image")
    strings = isinstance(texts, tfds.features.Tensor) and np.dtype(texts.np_dtype).kind == "O"
    return isinstance(image, tfds.features.Image) and strings


def open_dataset(spec: str, rest: str) -> ImageTextSource:
    """`tfds:NAME[/CONFIG][/VERSION][:SPLIT]`, with the features `image` and `captions`.

    Without SPLIT, `train` is trained on and the dataset's validation split is held out.

    Raises:
        DataProblem: (corrupt) it is missing, or not in array_record; (usage) it has no such
            split.
    """
    name, _, split = rest.partition(":")
    return open_version(spec, folder_of(name), split)


def open_version(spec: str, folder: Path, split: str = "") -> ImageTextSource:
    """As `open_dataset`, for the folder of a dataset's version."""
    info = builder_of(str(folder)).info
    held_out = "" if split else next((name for name in _HELD_OUT if name in info.splits), "")
    train = Examples(folder, split or "train")
    valid = Examples(folder, held_out) if held_out else ()
    records = {
        "dataset": info.full_name,
        "splits": [split or "train", held_out],
        "examples": [len(train), len(valid)],
    }
    return ImageTextSource(spec, train, valid, records)


def open_shapes(spec: str, folder: Path) -> ImageTextSource:
    """The shapes drawn into a folder.

    Raises:
        DataProblem: (corrupt) they are missing.
    """
    from data_pipelines.captions.shapes_dataset import version_folder

    if not (version := version_folder(folder)).is_dir():
        raise DataProblem(
            "the drawn shapes are missing", where=str(version), fix="prepare them again"
        )
    drawn = open_version(spec, version)
    return replace(drawn, records=drawn.records | {"drawn_side": shapes_side(spec)})


def open_shapes_with_questions(spec: str, folder: Path) -> ImageTextSource:
    """As `open_shapes`, with questions instead of captions."""
    shapes = open_shapes(spec, folder)
    return replace(shapes, train=Asked(shapes.train), valid=Asked(shapes.valid))


class Asked(Sequence[Example]):
    """Drawn scenes with questions instead of captions."""

    def __init__(self, scenes: Sequence[Example]):
        self._scenes = scenes

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, i: Any) -> Any:
        """Example i; the scene and its number are in its name, `train/00012.png`."""
        found = self._scenes[i]
        split, _, name = found.name.partition("/")
        asked = questions(int(name.removesuffix(".png")), held_out=split == "validation")
        return found._replace(captions=(), questions=asked)


class Examples(Sequence[Example]):
    """The examples of a split."""

    def __init__(self, folder: Path, split: str):
        self._where = f"{folder}, {split}"
        self._source = data_source(str(folder), split, ("image", "captions", "image/filename"))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: Any) -> Any:
        """Example i."""
        found = example(self._source, int(i), self._where)
        captions = found["captions"]
        texts = captions["text"] if isinstance(captions, dict) else captions
        name = found.get("image/filename", b"").decode("utf-8", "replace") or f"example {i}"
        return Example(name, tuple(map(text_of, texts)), found["image"])
