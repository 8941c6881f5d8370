"""An encoded image to pixels of the size that a model takes."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.errors import DataProblem
from data_pipelines.images import FORMATS, decode_image, fit, read_image


def decoded(image: Path | bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a file, or of the content of one.

    Raises:
        DataProblem: (corrupt) as `read_image`; `name` says which image it is.
    """
    return decode_image(image, name) if isinstance(image, bytes) else read_image(image)


def squared(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """The middle square of an image, as large as it can be, resized to `side` pixels.

    Bicubic with antialiasing, as DINOv2's own preprocessing does it; but nothing of the square
    is cut off, because a caption may tell of what lies at its border.
    """
    return np.ascontiguousarray(fit(pixels, side, side))


def size_of(image: Path | bytes, name: str) -> tuple[int, int]:
    """Width and height as the file tells them; decodes nothing.

    Raises:
        DataProblem: (corrupt) it does not even begin as an image.
    """
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(file, formats=FORMATS) as opened:
            return opened.size
    except Exception as error:  # pillow raises anything
        why = str(error)
        raise DataProblem("this is not an image", where=name, why=why, fix="leave it out") from None
