"""What a training batch holds, by the sizes of its model."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxmodels.architecture import ConfigView

if TYPE_CHECKING:
    import jax


def sees(config: Any) -> bool:
    """Whether a model of this Config is trained on images with captions, not on text.

    Such a Config says the side of its images, `image_size` in pixels.
    """
    view = ConfigView(config)
    return view.image_size is not None and view.context is not None


def batch_shapes(config: Any, rows: int, segments: bool) -> dict[str, "jax.ShapeDtypeStruct"]:
    """The arrays of a batch of so many rows, as the data pipelines make them.

    Args:
        config: of the model.
        rows: sequences, or images each with a caption.
        segments: whether the batch tells the document of each token.
    """

    import jax
    import jax.numpy as jnp

    def array(*shape: int, dtype: Any = jnp.int32) -> "jax.ShapeDtypeStruct":
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    if sees(config):
        side = config.image_size
        return {
            "tokens": array(config.context),
            "mask": array(config.context),
            "images": array(side, side, 3, dtype=jnp.uint8),
            "image_id": array(),
        }
    names = ("tokens", "segments") if segments else ("tokens",)
    return {name: array(config.context + 1) for name in names}


def grouped(batches: Iterable[dict[str, Any]], rows: int) -> Iterator[dict[str, Any]]:
    """The rows of batches in their order, in groups of so many; the last one has what is left
    too, so that no row is alone in a group if there are others.

    Args:
        batches: of host arrays, of any sizes.
        rows: in a group, at least 1.
    """
    import numpy as np

    held: dict[str, Any] = {}
    for batch in batches:
        held = {k: np.concatenate([held[k], v]) if held else v for k, v in batch.items()}
        while len(next(iter(held.values()))) >= 2 * rows:
            yield {k: v[:rows] for k, v in held.items()}
            held = {k: v[rows:] for k, v in held.items()}
    if held:
        yield held


def first_rows(batches: Iterable[dict[str, Any]], rows: int) -> Iterator[dict[str, Any]]:
    """The batches of the first so many rows."""
    for batch in batches:
        if rows <= 0:
            return
        yield {k: v[:rows] for k, v in batch.items()}
        rows -= len(batch["tokens"])
