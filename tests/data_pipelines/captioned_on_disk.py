"""Images with captions on disk: a TFDS dataset with COCO's features, folders, small shapes."""

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def picture(i: int, size: tuple[int, int] = (40, 30), kind: str = "png") -> bytes:
    """An image file; its mean tells which it is, to within JPEG's losses."""
    pixels = np.full((size[1], size[0], 3), (i * 3 % 256, i * 7 % 256, 90), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return file.getvalue()


def coco_features() -> Any:
    """Those of tfds's coco_captions 1.1.0."""
    box = tfds.features.BBoxFeature()
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": box,
                    "label": tfds.features.ClassLabel(num_classes=80),
                    "is_crowd": np.bool_,
                }
            ),
            "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
        }
    )


class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    """As tfds's own, of solid colours; the number of captions goes from five to seven."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="2014")]
    SPLITS: ClassVar = {"train": 30, "val": 10, "test": 12, "restval": 3}

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=coco_features())

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for i in range(self.SPLITS[split]):
            texts = [f"{split} image {i} caption {k}" for k in range(5 + i % 3)]
            objects = [
                {
                    "id": k,
                    "area": 9,
                    "bbox": tfds.features.BBox(0.1, 0.1, 0.5, 0.5),
                    "label": k,
                    "is_crowd": False,
                }
                for k in range(i % 2)
            ]
            yield (
                i,
                {
                    "image": io.BytesIO(picture(i, kind="jpeg")),
                    "image/filename": f"COCO_{split}_{i:012}.jpg",
                    "image/id": 1000 + i,
                    "objects": objects,
                    "captions": [{"text": text, "id": 10 * i + k} for k, text in enumerate(texts)],
                },
            )


def write_coco(folder: Path) -> None:
    """Writes the dataset into `folder`, for TFDS_DATA_DIR."""
    CocoCaptions(data_dir=folder, config="2014", file_format="array_record").download_and_prepare()
