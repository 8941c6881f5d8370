"""Images: any common file as RGB, and DINOv2's published preprocessing."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.limits import MAX_IMAGE

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that hold pixels only; pillow's other decoders may call programs (EPS does)."""
MAX_PIXELS = 2**26
"""Limit of a decoded image, 201 MB: a file of some kilobytes may claim gigabytes of pixels."""
# ImageNet's, of RGB in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
# Longer images are first cut to so many times their shorter side.
_MAX_ASPECT = 16


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a file, rotated by its metadata, transparent parts on white.

    Greyscale, palettes, CMYK and 16 bits become RGB of 8 bits; of an animation the first frame is
    taken.

    Raises:
        DataProblem: (corrupt) no such file; not an image, damaged, or of an unknown format;
            more than `MAX_PIXELS`.
    """
    path = path_of(str(path))
    if not path.is_file():
        raise DataProblem("no such image file", where=str(path), fix="check the path")
    return _read(path, str(path))


def decode_image(data: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """As `read_image`, from a file's bytes; `where` names it in errors."""
    return _read(io.BytesIO(data), where)


def fit(
    image: UInt8[np.ndarray, "h w 3"], edge: int = 256, crop: int = 224
) -> UInt8[np.ndarray, "{crop} {crop} 3"]:
    """The middle of an image: its shorter side resized to `edge` (bicubic), a square cut out.

    Args:
        image: any size.
        edge: pixels of the shorter side.
        crop: pixels of the square, at most `edge`.

    Raises:
        DataProblem: (usage) the square is larger than the edge.
    """
    if not 1 <= crop <= edge:
        raise DataProblem(
            f"a square of {crop} pixels cannot be cut from a side of {edge}",
            fix="crop at most as much as the shorter side has",
            exit_code=USAGE,
        )
    image = _shortened(image)
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = int(edge * width / shorter), int(edge * height / shorter)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = ((side - crop) // 2 for side in resized.shape[:2])
    return resized[top : top + crop, left : left + crop]


def normalise(images: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """float32 as DINOv2 takes them: 0 is ImageNet's mean colour, 1 one standard deviation more."""
    return ((images * (1 / 255)).astype(np.float32) - MEAN) / STD


def preprocess(
    image: UInt8[np.ndarray, "h w 3"], edge: int = 256, crop: int = 224
) -> Float[np.ndarray, "{crop} {crop} 3"]:
    """The input of the published DINOv2 models: `normalise(fit(image))`, float32."""
    return normalise(fit(image, edge, crop))


def _read(file: Path | io.BytesIO, where: str) -> np.ndarray:
    try:
        size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else file.stat().st_size
        if size > MAX_IMAGE:
            raise _too_large(where, f"it has {size:,} bytes; {MAX_IMAGE:,} are the most")
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image, where)
            return _colours(_upright(image), where)
    except (DataProblem, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where, str(error)) from None
    except Exception as error:  # pillow's decoders may raise anything for damaged files
        raise DataProblem(
            "this is not a readable image",
            where=where,
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix=f"leave it out, or save it again; known formats: {', '.join(FORMATS)}",
        ) from None


def _check_size(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(where, f"it has {width} × {height} pixels; {MAX_PIXELS:,} are the most")


def _too_large(where: str, why: str) -> DataProblem:
    fix = "make it smaller, or leave it out: models see a few hundred pixels per side"
    return DataProblem("the image is too large", where=where, why=why, fix=fix)


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated by its metadata; unreadable metadata are ignored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # pillow's reader of metadata may raise anything too
        return image


def _colours(image: Image.Image, where: str) -> np.ndarray:
    """uint8 [h, w, 3], writable."""
    if image.mode.startswith("I"):
        return _of_16_bits(np.asarray(image), where)
    if image.mode == "F":
        raise _unknown_range(where, "its numbers are floats")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _of_16_bits(grey: np.ndarray, where: str) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise _unknown_range(where, f"its numbers go from {grey.min()} to {grey.max()}")
    small = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(small[..., None], 3, axis=-1)


def _unknown_range(where: str, why: str) -> DataProblem:
    fix = "save it with 8 or 16 bits"
    return DataProblem("the value of white in the image is unknown", where=where, why=why, fix=fix)


def _shortened(image: np.ndarray) -> np.ndarray:
    """The image without the ends that `fit` discards: resizing a long, thin one takes gigabytes."""
    most = _MAX_ASPECT * min(image.shape[:2])
    top, left = (max(side - most, 0) // 2 for side in image.shape[:2])
    return image[top : top + most, left : left + most]
