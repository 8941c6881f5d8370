"""Using the memory of a trained model: facts are written, read and forgotten without training.

    stats = bitgen.write(model, tokens, images)         # captions, with their images as keys
    model.memory.set(stats)                             # saved with the model
    logits, cache = model.recollect(images, size=20)    # the decoder says what was written

These functions are pure: they return new statistics and leave the model unchanged.
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
    """The memory's statistics with texts added.

    Args:
        model: a trained model.
        tokens: one text in each row.
        images: float32 in [0, 1], the texts' keys; None: the texts are their own keys.
        mask: 1 for tokens, 0 for padding.
        stats: of the memory to add to; by default the model's own.

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
    """The statistics without texts that this model wrote with the same images."""
    keys, codes = _written(model, tokens, images, mask)
    return larimar.forget(_own(model, stats), model.memory.address(keys), codes)


def read(
    model: Model,
    tokens: Tokens | None = None,
    images: Images | None = None,
    mask: Tokens | None = None,
    stats: SufficientStats | None = None,
) -> Float[Array, "b d"]:
    """The codes that the memory has for images or, without these, for texts.

    They are close to the `codes` of the texts written; `model.recollect` turns them into text.
    """
    if images is not None:
        keys = model.image_features(images)
    else:
        assert tokens is not None, "give texts or images to read by"
        keys = model.text_features(tokens, mask)
    return model.memory.read(keys, _own(model, stats))


def codes(model: Model, tokens: Tokens, mask: Tokens | None = None) -> Float[Array, "b d"]:
    """The codes of texts, as `write` adds them."""
    mask = model.padding_mask(tokens, mask)
    return model.memory.codes(mean(upper_text(model, lower_text(model, tokens, mask), mask), mask))


def nearest(
    found: Float[Array, "b d"], candidates: Float[Array, "n d"]
) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """For each code, the index of the most similar candidate, and the cosine."""
    one, other = (
        x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=1, keepdims=True), 1e-12))
        for x in (found, candidates)
    )
    cosines = one @ other.T
    return cosines.argmax(axis=1), cosines.max(axis=1)


def _written(
    model: Model, tokens: Tokens, images: Images | None, mask: Tokens | None
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """The keys and codes of texts to write or forget."""
    if images is None:
        return model.text_features(tokens, mask), codes(model, tokens, mask)
    return model.image_features(images), codes(model, tokens, mask)


def _own(model: Model, stats: SufficientStats | None) -> SufficientStats:
    return model.memory.stats if stats is None else stats
