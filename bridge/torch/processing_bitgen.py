"""Images and texts as a BitGen model takes them, for transformers.

This file stands alone and travels with every model directory, so that
`AutoProcessor.from_pretrained(DIR, trust_remote_code=True)` opens it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin

# Longer images are first cut to so many times their shorter side: resizing them takes gigabytes.
MAX_ASPECT = 16


class BitGenImageProcessor(ImageProcessingMixin):
    """The largest centred square of an image, resized; values in [0, 1], not normalised."""

    model_input_names = ("pixel_values",)

    def __init__(self, size: int = 224, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def __call__(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """`pixel_values`, float32 [b, 3, size, size].

        Args:
            images: one or a list; PIL images, or arrays uint8 [h, w, 3].
            return_tensors: "pt", the default, or "np".

        Raises:
            ValueError: something else.
        """
        images = images if isinstance(images, list | tuple) else [images]
        pixels = np.stack([self.square(colours(image)) for image in images])
        values = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def square(self, image: Image.Image) -> np.ndarray:
        """uint8 [size, size, 3]: the shorter side resized to `size` (bicubic), the middle cut."""
        width, height = image.size
        most = MAX_ASPECT * min(width, height)
        left, top = (max(side - most, 0) // 2 for side in (width, height))
        width, height = min(width, most), min(height, most)
        image = image.crop((left, top, left + width, top + height))
        shorter = min(width, height)
        size = int(self.size * width / shorter), int(self.size * height / shorter)
        resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        top, left = ((side - self.size) // 2 for side in resized.shape[:2])
        return resized[top : top + self.size, left : left + self.size]


def colours(image: Any) -> Image.Image:
    """An image as RGB: rotated by its metadata, transparent parts on white."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"an image is an array uint8 [h, w, 3], not {image.dtype} {list(image.shape)}"
            )
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image is a PIL image or an array, not a {type(image).__name__}")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("the value of white in an image of floats is unknown")
    if image.mode.startswith("I"):  # 16 bits
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class BitGenProcessor(ProcessorMixin):
    """Images by `BitGenImageProcessor`; texts as captions, each with its end, as in training."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        end: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """What the model takes: `pixel_values`, and `input_ids` with `attention_mask`.

        Args:
            images: as `BitGenImageProcessor` takes them.
            text: captions; cut to the model's context.
            end: whether a text is complete. False for a prompt that `generate` continues.
            return_tensors: "pt" only.

        Raises:
            ValueError: neither images nor text; another kind of tensor.
        """
        if return_tensors != "pt":
            raise ValueError("only PyTorch's tensors are made: return_tensors='pt'")
        if images is None and text is None:
            raise ValueError("give images, text or both")
        found: dict[str, Any] = {}
        if text is not None:
            found |= self.tokens([text] if isinstance(text, str) else list(text), end)
        if images is not None:
            found |= self.image_processor(images)
        return BatchFeature(found)

    def tokens(self, texts: list[str], end: bool) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, int64 [b, t], padded on the right."""
        tokenizer = self.tokenizer
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        if end:
            last = [tokenizer.eos_token_id]
            if last == [None]:  # a blank line ends a caption
                last = tokenizer.encode("\n\n", add_special_tokens=False)
            rows = [row + last for row in rows]
        rows = [row[: tokenizer.model_max_length] for row in rows]
        filling = next(
            i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None
        )
        longest = max(len(row) for row in rows)
        ids = [row + [filling] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        found = {"input_ids": torch.tensor(ids, dtype=torch.long)}
        if "attention_mask" in tokenizer.model_input_names:
            found["attention_mask"] = torch.tensor(mask, dtype=torch.long)
        return found

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """Token ids as texts, without special tokens unless `skip_special_tokens=False`."""
        return self.tokenizer.batch_decode(*args, **{"skip_special_tokens": True, **kwargs})

    def decode(self, *args, **kwargs) -> str:
        """The same of one text."""
        return self.tokenizer.decode(*args, **{"skip_special_tokens": True, **kwargs})
