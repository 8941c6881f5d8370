"""The drawn scenes as a TFDS dataset, with the features of `coco_captions`."""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.captions.shapes import HELD_OUT, TRAIN, captions, draw, scene
from data_pipelines.files import FULL
from data_pipelines.reading import Progress


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Two coloured shapes, one left of the other or above it; five true captions for each."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, side: int, progress: Progress | None = None, **options: Any):
        self._side, self._progress = side, progress
        super().__init__(**options)

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(self._side, self._side, 3), encoding_format="png")
        captions = tfds.features.Sequence({"id": np.int64, "text": np.str_})
        features = {
            "image": image,
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": captions,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples(False),
            "validation": self._generate_examples(True),
        }

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(HELD_OUT if held_out else TRAIN):
            drawn, number = scene(i, held_out), i + TRAIN * held_out
            texts = [
                {"id": 10 * number + k, "text": text} for k, text in enumerate(captions(drawn))
            ]
            yield (
                number,
                {
                    "image": _png(draw(drawn, self._side)),
                    "image/filename": f"{'validation' if held_out else 'train'}/{i:05}.png",
                    "image/id": number,
                    "captions": texts,
                },
            )
            if self._progress:
                size = 3 * self._side**2
                self._progress("drawing", (number + 1) * size, (TRAIN + HELD_OUT) * size)


def write_shapes(folder: Path, side: int, progress: Progress | None = None) -> None:
    """Draws the dataset into `folder`, which becomes TFDS's data_dir.

    Args:
        folder: where to write.
        side: width and height of an image, in pixels.
        progress: called as (stage, bytes of pixels done, bytes in all).

    Raises:
        OSError: the disk is full.
    """
    tfds.disable_progress_bar()
    with redirect_stdout(io.StringIO()):  # TFDS prints what it does
        options = {"data_dir": folder, "file_format": "array_record"}
        try:
            Shapes(side=side, progress=progress, **options).download_and_prepare()
        except RuntimeError as error:  # array_record's writer has the system's error as text only
            for number in FULL:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(folder)) from error
            raise


def version_folder(folder: Path) -> Path:
    """The folder of the dataset's version in `folder`."""
    return folder / "shapes" / str(Shapes.VERSION)


def _png(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    file.seek(0)
    return file
