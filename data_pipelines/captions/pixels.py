"""An encoded image to pixels of the size that a model takes."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.errors import DataProblem
from data_pipelines.images import FORMATS, decode_image, fit, read_image


def fitted(image: Path | bytes, side: int, name: str) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """The middle square of an image, as large as it can be, resized to `side` pixels.

    Bicubic with antialiasing, as DINOv2's own preprocessing does it; but nothing of the square
    is cut off, because a caption may tell of what lies at its border.

    Args:
        image: a file, or the content of one.
        side: width and height of what is returned.
        name: says in errors which image it is.

    Raises:
        DataProblem: (corrupt) as `read_image`.
    """
    pixels = decode_image(image, name) if isinstance(image, bytes) else read_image(image)
    return fit(pixels, side, side)


def check(image: Path | bytes, name: str) -> None:
    """Raises DataProblem (corrupt) if this does not even begin as an image; decodes nothing."""
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(file, formats=FORMATS):
            pass
    except Exception as error:  # pillow raises anything
        why = str(error)
        raise DataProblem("this is no image", where=name, why=why, fix="leave it out") from None
