"""Decodes images and fits them to the size that a model takes."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.errors import DataProblem
from data_pipelines.images import FORMATS, decode_image, fit, read_image


def pixels_of(image: Path | bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a file, or of its content.

    Raises:
        DataProblem: (corrupt) as `read_image`; `name` identifies the image.
    """
    return decode_image(image, name) if isinstance(image, bytes) else read_image(image)


def square(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """The largest centred square of an image, resized to `side` pixels.

    Bicubic with antialiasing, as DINOv2's preprocessing; but no border of the square is cut off,
    because a caption may describe what is there.
    """
    return np.ascontiguousarray(fit(pixels, side, side))


def size_of(image: Path | bytes, name: str) -> tuple[int, int]:
    """Width and height by the file's header; decodes nothing.

    Raises:
        DataProblem: (corrupt) it does not begin as an image.
    """
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(file, formats=FORMATS) as opened:
            return opened.size
    except Exception as error:  # pillow may raise anything
        why = str(error)
        raise DataProblem("this is not an image", where=name, why=why, fix="leave it out") from None
