"""The arrays of a training batch, derived from the model's Config; batches cut anew."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxmodels.architecture import ConfigView

if TYPE_CHECKING:
    import jax


def takes_images(config: Any) -> bool:
    """Whether a model of this Config is trained on images with captions, not on text.

    Such a Config has `image_size`, the side of its images in pixels, and `context`.
    """
    view = ConfigView(config)
    return view.image_size is not None and view.context is not None


def batch_shapes(config: Any, rows: int, segments: bool) -> dict[str, "jax.ShapeDtypeStruct"]:
    """Name → shape and dtype of a batch's arrays, as the data pipelines make them.

    Args:
        config: the model's Config.
        rows: number of sequences, or of images with a caption each.
        segments: whether the batch has the document number of each token.
    """

    import jax
    import jax.numpy as jnp

    def array(*shape: int, dtype: Any = jnp.int32) -> "jax.ShapeDtypeStruct":
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    if takes_images(config):
        side = config.image_size
        return {
            "tokens": array(config.context),
            "mask": array(config.context),
            "images": array(side, side, 3, dtype=jnp.uint8),
            "image_id": array(),
        }
    names = ("tokens", "segments") if segments else ("tokens",)
    return {name: array(config.context + 1) for name in names}


def regroup(batches: Iterable[dict[str, Any]], rows: int) -> Iterator[dict[str, Any]]:
    """The same rows in groups of `rows`. The last group also takes the remainder, so that a loss
    that compares rows never gets a lone one.

    Args:
        batches: host arrays, any number of rows each.
        rows: rows of a group, at least 1.
    """
    import numpy as np

    buffer: dict[str, Any] = {}
    for batch in batches:
        buffer = {k: np.concatenate([buffer[k], v]) if buffer else v for k, v in batch.items()}
        while len(next(iter(buffer.values()))) >= 2 * rows:
            yield {k: v[:rows] for k, v in buffer.items()}
            buffer = {k: v[rows:] for k, v in buffer.items()}
    if buffer:
        yield buffer


def first_rows(batches: Iterable[dict[str, Any]], rows: int) -> Iterator[dict[str, Any]]:
    """The first `rows` rows, in batches as they come."""
    for batch in batches:
        if rows <= 0:
            return
        yield {k: v[:rows] for k, v in batch.items()}
        rows -= len(batch["tokens"])
