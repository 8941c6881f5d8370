"""An encoded image to pixels of the size that a model takes."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipelines.errors import DataProblem


def fitted(image: Path | bytes, side: int, name: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """The middle square of an image, as large as it can be, resized to `side` pixels.

    Bicubic with antialiasing (pillow's), as DINOv2's own preprocessing does it; but the whole
    square is kept, because a caption may tell of what lies at its border.

    Raises:
        DataProblem: (corrupt) this is no image.
    """
    from PIL import Image

    try:
        with Image.open(_file(image)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(name, str(error)) from None
    width, height = picture.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box))


def check(image: Path | bytes, name: str = "") -> None:
    """Raises as `fitted` if this does not even begin as an image."""
    from PIL import Image

    try:
        with Image.open(_file(image)):
            pass
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(name, str(error)) from None


def _file(image: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(image) if isinstance(image, bytes) else image


def _unreadable(name: str, why: str) -> DataProblem:
    return DataProblem("this is no image that can be read", where=name, why=why, fix="replace it")
