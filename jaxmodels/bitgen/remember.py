"""The memory of a trained model in use: facts are written, read and forgotten without training.

    evidence = bitgen.write(model, tokens, images)      # captions, found again by their images
    model.memory.set(evidence)                          # the model remembers them, also on disk
    logits, cache = model.recollect(images, size=20)    # and the decoder says what they were

These functions change nothing: they return what was written as a new value.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmodels.bitgen import larimar
from jaxmodels.bitgen.encoders import lower_text, mean, upper_text
from jaxmodels.bitgen.larimar import SufficientStats
from jaxmodels.bitgen.model import Model

Tokens = Int[Array, "b t"]
Images = Float[Array, "b h w 3"]


def write(
    model: Model,
    tokens: Tokens,
    images: Images | None = None,
    mask: Tokens | None = None,
    stats: SufficientStats | None = None,
) -> SufficientStats:
    """The memory with the texts in it.

    Args:
        model: a trained model.
        tokens: one text a row.
        images: by which the texts are to be found; by themselves, if None. float32 in [0, 1].
        mask: 1 for tokens, 0 for padding.
        stats: the memory to add to; by default the model's own.

    Raises:
        Problem: (usage) as the model's call.
    """
    keys, codes = _written(model, tokens, images, mask)
    return larimar.write(_own(model, stats), model.memory.address(keys), codes)


def forget(
    model: Model,
    tokens: Tokens,
    images: Images | None = None,
    mask: Tokens | None = None,
    stats: SufficientStats | None = None,
) -> SufficientStats:
    """The memory without texts that were written with the same images by the same model."""
    keys, codes = _written(model, tokens, images, mask)
    return larimar.forget(_own(model, stats), model.memory.address(keys), codes)


def read(
    model: Model,
    tokens: Tokens | None = None,
    images: Images | None = None,
    mask: Tokens | None = None,
    stats: SufficientStats | None = None,
) -> Float[Array, "b d"]:
    """The codes that the memory has for images or, without them, for texts.

    `codes` of the texts that were written are near them; `model.recollect` says them.
    """
    if images is not None:
        keys = model.image_features(images)
    else:
        assert tokens is not None, "give texts or images to read by"
        keys = model.text_features(tokens, mask)
    return model.memory.read(keys, _own(model, stats))


def codes(model: Model, tokens: Tokens, mask: Tokens | None = None) -> Float[Array, "b d"]:
    """The codes of texts, as they are written."""
    mask = model.padding_mask(tokens, mask)
    return model.memory.codes(mean(upper_text(model, lower_text(model, tokens, mask), mask), mask))


def nearest(
    found: Float[Array, "b d"], candidates: Float[Array, "n d"]
) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """Which candidate each code is most alike, and how much (the cosine)."""
    one, other = (
        x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=1, keepdims=True), 1e-12))
        for x in (found, candidates)
    )
    cosines = one @ other.T
    return cosines.argmax(axis=1), cosines.max(axis=1)


def _written(
    model: Model, tokens: Tokens, images: Images | None, mask: Tokens | None
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """Keys and codes of what is written."""
    if images is None:
        return model.text_features(tokens, mask), codes(model, tokens, mask)
    return model.image_features(images), codes(model, tokens, mask)


def _own(model: Model, stats: SufficientStats | None) -> SufficientStats:
    return model.memory.stats if stats is None else stats
