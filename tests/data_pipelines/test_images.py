import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import images
from data_pipelines.errors import CORRUPT, USAGE, DataProblem
from data_pipelines.images import decode_image, fit, normalise, preprocess, read_image


def picture(height=40, width=60, seed=0) -> np.ndarray:
    """A smooth picture with some noise, uint8 [h, w, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 5 + c) + np.cos(y / 7 - c) for c in range(3)]
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)) / 3
    return np.clip(127 + 50 * (np.stack(waves, -1) + noise), 0, 255).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    whole = name + data
    return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_files_without_loss_are_their_pixels(tmp_path, format):
    pixels = picture()
    path = tmp_path / "named.jpg"  # a file is what it holds
    path.write_bytes(saved(Image.fromarray(pixels), format, lossless=True))
    np.testing.assert_array_equal(read_image(path), pixels)
    assert read_image(str(path)).dtype == np.uint8


def test_jpeg_and_gif_are_near():
    pixels = picture()
    for format, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("GIF", {})):
        near = decode_image(saved(Image.fromarray(pixels), format, **options), "a")
        assert np.abs(near.astype(int) - pixels).mean() < 10


def test_grey_palette_and_one_bit():
    grey = picture()[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        np.testing.assert_array_equal(
            decode_image(saved(image, "PNG"), "a"), np.repeat(grey[..., None], 3, -1)
        )
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    found = decode_image(saved(bits, "PNG"), "a")
    np.testing.assert_array_equal(found[..., 1], np.where(grey > 127, 255, 0))


def test_cmyk_becomes_its_colours():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    for format in ("TIFF", "JPEG"):
        found = decode_image(saved(image, format), "a")
        assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def test_what_is_transparent_is_white():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[0, :, 3] = 255
    pixels[1, 1, 3] = 128
    found = decode_image(saved(Image.fromarray(pixels), "PNG"), "a")
    np.testing.assert_array_equal(found[0], [[200, 0, 0]] * 3)
    np.testing.assert_array_equal(found[1, 0], [255, 255, 255])
    np.testing.assert_allclose(found[1, 1], [227, 127, 127], atol=1)
    palette = Image.fromarray(picture()[..., 0]).convert("P")
    found = decode_image(saved(palette, "PNG", transparency=int(picture()[0, 0, 0])), "a")
    np.testing.assert_array_equal(found[0, 0], [255, 255, 255])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_eight(format):
    grey = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    found = decode_image(saved(Image.fromarray(grey), format), "a")
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 128, 255])
    assert found.shape == (1, 6, 3)


@pytest.mark.parametrize("numbers", [np.float32([[0.5, 2.0]]), np.int32([[-1, 70_000]])])
def test_numbers_of_no_known_range_are_refused(numbers):
    with pytest.raises(DataProblem, match="value of white") as caught:
        decode_image(saved(Image.fromarray(numbers), "TIFF"), "a")
    assert caught.value.exit_code == CORRUPT


def test_every_orientation_of_a_camera_is_turned_upright():
    pixels = picture(16, 24)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        found = decode_image(saved(image, "PNG", exif=exif), "a")
        np.testing.assert_array_equal(found, pixels, err_msg=str(orientation))


def test_metadata_that_makes_no_sense_is_passed_over():
    pixels = picture()
    found = decode_image(saved(Image.fromarray(pixels), "PNG", exif=b"II*\0\xff\xff\xff\xff"), "a")
    np.testing.assert_array_equal(found, pixels)


def test_one_pixel():
    pixel = np.array([[[3, 2, 1]]], np.uint8)
    found = decode_image(saved(Image.fromarray(pixel), "PNG"), "a")
    np.testing.assert_array_equal(found, pixel)
    assert (fit(found) == pixel).all()
    assert preprocess(found).shape == (224, 224, 3)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, "a")[0, 0], [255, 0, 0])


def test_no_image(tmp_path):
    for data in (b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        path = tmp_path / "a.png"
        path.write_bytes(data)
        with pytest.raises(DataProblem, match="not a readable image") as caught:
            read_image(path)
        assert caught.value.exit_code == CORRUPT
        assert caught.value.where == str(path)
        assert caught.value.fix
    for nothing in (tmp_path, tmp_path / "missing.png"):
        with pytest.raises(DataProblem, match="no such image file"):
            read_image(nothing)


def test_a_decoder_that_calls_programs_is_never_asked():
    data = saved(Image.fromarray(picture()), "EPS")
    with pytest.raises(DataProblem, match="not a readable image"):
        decode_image(data, "a")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_file_that_claims_to_be_huge_is_refused_unread(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(DataProblem, match="too large") as caught:
        decode_image(b"\x89PNG\r\n\x1a\n" + body, "bomb.png")
    assert caught.value.exit_code == CORRUPT
    assert caught.value.fix


def test_the_limit_is_inclusive(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 60)
    assert decode_image(saved(Image.fromarray(picture()), "PNG"), "a").shape == (40, 60, 3)
    with pytest.raises(DataProblem, match="too large"):
        decode_image(saved(Image.fromarray(picture(41)), "PNG"), "a")


WHOLE = {
    format: saved(Image.fromarray(picture(20, 30)), format)
    for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
}


@given(
    format=st.sampled_from(list(WHOLE)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
    end=st.floats(0, 1),
)
def test_a_damaged_file_is_an_image_or_a_problem(format, flips, end):
    data = bytearray(WHOLE[format])
    for at, by in flips:
        data[int(at * (len(data) - 1))] ^= by
    try:
        found = decode_image(bytes(data[: int(end * len(data))]), "a")
    except DataProblem as problem:
        found = problem
    if isinstance(found, DataProblem):
        assert found.exit_code == CORRUPT
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 3


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (100, 37), (1, 16), (1, 1)])
def test_preprocessing_is_the_published_one(size):
    from transformers import BitImageProcessorPil
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    pixels = picture(*size)
    # preprocessor_config.json of facebook/dinov2-base.
    theirs = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    expected = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    found = preprocess(pixels)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))


def test_transparency_is_as_in_transformers():
    from transformers.image_transforms import convert_to_rgb

    image = Image.fromarray(np.dstack([picture(), picture(seed=1)[..., 0]]))
    np.testing.assert_array_equal(
        decode_image(saved(image, "PNG"), "a"), convert_to_rgb(image, return_numpy=True)
    )


@pytest.mark.slow
def test_a_thread_of_pixels_takes_no_gigabytes():
    thread = picture(3, 3_000_000)  # would be 256 × 256,000,000
    middle = thread[:, 1_499_976:1_500_024]
    np.testing.assert_array_equal(fit(thread), fit(middle))
    np.testing.assert_array_equal(fit(thread.swapaxes(0, 1)), fit(middle.swapaxes(0, 1)))


def test_other_sizes_and_batches():
    assert fit(picture(), 64, 56).shape == (56, 56, 3)
    np.testing.assert_array_equal(
        normalise(np.stack([picture(), picture(seed=1)]))[1], normalise(picture(seed=1))
    )
    with pytest.raises(DataProblem, match="cannot be cut") as caught:
        fit(picture(), 56, 64)
    assert caught.value.exit_code == USAGE
