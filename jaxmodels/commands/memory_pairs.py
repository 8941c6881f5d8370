"""Pairs of images and texts that a memory's thresholds are measured on."""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.bitgen import closeness
from jaxmodels.bitgen.record import Closeness
from jaxmodels.commands.memory_model import Memorable
from jaxmodels.errors import USAGE, Problem

MOST = 1000
"""Pairs; more make the threshold no better."""
LEAST = 20
"""Of fewer pairs the threshold would be that of chance."""
SHAPES = "shapes"


def measured(memorable: Memorable, spec: str) -> Closeness:
    """The thresholds of a model on the held-out pairs of a data set, or on all of a small one.

    Raises:
        DataProblem: as `open_data`; Problem: (usage) there are too few pairs.
    """
    pixels, texts = _drawn(memorable) if spec == SHAPES else _opened(memorable, spec)
    if len(texts) < LEAST:
        raise Problem(
            f"{len(texts)} images with captions are too few to measure on",
            where=spec,
            why=f"at least {LEAST} are needed, and some hundred are better",
            fix="give other --data",
            exit_code=USAGE,
        )
    images = memorable.images(pixels)
    again = memorable.images(np.stack([_saved_again(image) for image in pixels]))
    features = memorable.texts(texts).features
    words, looks = np.asarray(texts), images @ images.T > closeness.LARGEST
    same = (words[:, None] == words[None]) | looks
    return closeness.measure(features, images, again, same, memorable.config.slots, spec)


def _drawn(memorable: Memorable) -> tuple[np.ndarray, list[str]]:
    """The held-out scenes, each with one of its captions in turn; nothing is written."""
    from data_pipelines.captions.shapes import HELD_OUT, captions, draw, scene

    scenes = [scene(i, held_out=True) for i in range(HELD_OUT)]
    texts = [options[i % len(options)] for i, options in enumerate(map(captions, scenes))]
    return np.stack([draw(each, memorable.config.image_size) for each in scenes]), texts


def _opened(memorable: Memorable, spec: str) -> tuple[np.ndarray, list[str]]:
    from data_pipelines.captions.opening import has_captions
    from data_pipelines.pipelines import open_data

    if not has_captions(spec):
        raise Problem(
            "these data have no images with captions",
            where=spec,
            fix="give such as shapes, coco_captions or images:FOLDER",
            exit_code=USAGE,
        )
    with tempfile.TemporaryDirectory(prefix="jaxmodels-memory-") as folder:

        def open_with(share: float) -> Any:
            return open_data(
                spec,
                folder=Path(folder) / "data",
                context=memorable.config.context,
                batch=32,
                tokenizer=memorable.tokenizer,
                side=memorable.config.image_size,
                valid_fraction=share,
            )

        data = open_with(0.05)
        if data.valid_images < LEAST:
            data = open_with(1.0)
        batches, captions = data.retrieval(MOST)
        return np.concatenate([*batches]), [
            group[i % len(group)] for i, group in enumerate(captions)
        ]


def _saved_again(image: np.ndarray) -> np.ndarray:
    """The image as a JPEG file has it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))
