"""A TFDS dataset of given texts, as `download_and_prepare` leaves it on disk."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """Documents as they are given; no network."""

    VERSION = tfds.core.Version("1.0.0")
    TEXTS: ClassVar[list[str]] = []

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((i, {"text": text}) for i, text in enumerate(self.TEXTS))


def write(folder: Path, texts: list[str]) -> str:
    """Writes a dataset into `folder`, for TFDS_DATA_DIR; the spec that names it."""
    TinyTexts.TEXTS = texts
    TinyTexts(data_dir=folder, file_format="array_record").download_and_prepare()
    return "tfds:tiny_texts"
