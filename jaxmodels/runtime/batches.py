"""The arrays of a training batch, derived from the model's Config; batches cut anew."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxmodels.architecture import ConfigView

if TYPE_CHECKING:
    import jax


def takes_images(config: Any) -> bool:
    """Whether a model of this Config is trained on images with captions.

    Such a Config has `image_size`, the side of its images in pixels, and `context`.
    """
    view = ConfigView(config)
    return view.image_size is not None and view.context is not None


def takes_text(config: Any) -> bool:
    """Whether a model of this Config is trained on windows of text, perhaps besides images.

    One that reads both has `caption`, the longest caption.
    """
    view = ConfigView(config)
    return view.context is not None and (view.image_size is None or view.caption is not None)


def compares_rows(package: Any, batch: dict[str, Any]) -> bool:
    """Whether a loss compares the rows of this batch, which then must not be split."""
    return package.CROSS_ROW_LOSS or "image_id" in batch


def batch_shapes(config: Any, rows: int, segments: bool) -> dict[str, "jax.ShapeDtypeStruct"]:
    """Name → shape and dtype of a batch's arrays, as the data pipelines make them.

    Of a model that reads text and images it is the batch of images. One of questions also has
    `scored`, int32 like `mask`: 1 where a token of an answer is to be learned.

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
        side, longest = config.image_size, ConfigView(config).caption or config.context
        return {
            "tokens": array(longest),
            "mask": array(longest),
            "images": array(side, side, 3, dtype=jnp.uint8),
            "image_id": array(),
        }
    names = ("tokens", "segments") if segments else ("tokens",)
    return {name: array(config.context + 1) for name in names}


def regroup(
    batches: Iterable[dict[str, Any]],
    rows: int,
    compared: Callable[[dict[str, Any]], bool] = lambda batch: True,
) -> Iterator[dict[str, Any]]:
    """The same rows in groups of `rows`. The last group also takes the remainder, so that a loss
    that compares rows never gets a lone one.

    Args:
        batches: host arrays, any number of rows each.
        rows: rows of a group, at least 1.
        compared: whether a batch is regrouped; others come as they are.
    """
    import numpy as np

    buffer: dict[str, Any] = {}
    for batch in batches:
        if not compared(batch):
            yield batch
            continue
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
