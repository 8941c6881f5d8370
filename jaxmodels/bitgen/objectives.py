"""The losses of bitgen: contrast, matching, captioning ("writing"), and the memory's divergence.

`Config.weights` weighs them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.bitgen import fiber, larimar
from jaxmodels.bitgen.encoders import (
    lower_image,
    lower_text,
    mean,
    together,
    upper_image,
    upper_text,
)
from jaxmodels.bitgen.memory import Episode
from jaxmodels.bitgen.model import Model
from jaxmodels.bitgen.momentum import follow, following
from jaxmodels.layers.contrast import Contrast, alike, clamped, contrast
from jaxmodels.layers.losses import chunked_scores
from jaxmodels.layers.precision import to_float32

SMOOTHING = 0.1
# The loss compares the rows of a batch, so a micro-batch is never sliced.
CROSS_ROW_LOSS = True


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The weighted sum of the losses that the batch allows.

    Args:
        model: the model; it is read, never changed.
        batch: `tokens` int32 [b, t], texts with an end-of-text token, padded at the end; `mask`
            int32 [b, t], 1 = token (if absent, all are); `images` uint8 [b, h, w, 3] and
            `image_id` int32 [b], or neither: texts alone are written to the memory and read back.
        rngs: the stream `dropout` draws dropout, hard negatives and the memory's noise; None
            takes the hardest negatives and no noise.

    Returns:
        the loss, and `aux`: the card's `metrics`, the names of those that are means over tokens
        (`by_tokens`), and the features that `commit` queues.

    Raises:
        Problem: (usage) as in a call of the model.
    """
    of_itc, of_itm, of_writing, of_kl = model.config.weights
    tokens = batch["tokens"]
    mask = model.padding_mask(tokens, batch.get("mask"))
    x = lower_text(model, tokens, mask, rngs)
    alone = upper_text(model, x, mask, rngs)
    pooled = mean(alone, mask)
    text = model.text_pool(pooled)
    codes = model.memory.codes(pooled)
    total, metrics, aux, seen, keys = jnp.zeros(()), {}, {}, None, text
    if "images" in batch:
        y = lower_image(model, batch["images"].astype(jnp.float32) / 255, rngs)
        seen = upper_image(model, y, rngs)
        keys = model.image_pool(seen.mean(axis=1))
        ids = batch["image_id"]
        same = alike(ids, tokens)
        tau = clamped(to_float32(model.temperature[...]))
        both = (text, keys)
        kept = _slow_features(model, batch) if model.config.momentum else both
        itc = contrast(both, kept, model.queue, ids, same, tau)
        rows = fiber.rows_of(model.config, batch, mask) if model.config.queue_inputs else None
        itm, accuracy = _matching(model, (x, mask, y), itc, rows, rngs)
        total = of_itc * itc.loss + of_itm * itm
        metrics = {
            "contrastive_loss": itc.loss,
            "acc_t2i": itc.acc_t2i,
            "acc_i2t": itc.acc_i2t,
            "itm_loss": itm,
            "itm_acc": accuracy,
            "temperature": tau,
        }
        aux = jax.lax.stop_gradient({"text": kept[0], "image": kept[1], "ids": ids})
        aux |= {} if rows is None else {"inputs": rows}
    keys = jax.lax.stop_gradient(keys)
    episode = model.memory.episode(keys, codes, rngs)
    turn = _turns(batch, training=rngs is not None)
    writing, of_text = _writing(model, tokens, mask, seen, keys, episode, turn, rngs)
    total += of_writing * writing + of_kl * episode.divergence
    metrics |= of_text | {
        "memory_kl_loss": episode.divergence,
        "memory_utilization": episode.utilization,
        "memory_quality": episode.quality,
    }
    by_tokens = {"loss": of_writing * writing, **jax.lax.stop_gradient(of_text)}
    return total, aux | {"metrics": jax.lax.stop_gradient(metrics), "by_tokens": by_tokens}


def counted(batch: dict[str, Any]) -> Int[Array, ""]:
    """The number of tokens of a batch that the captioning loss is a mean over."""
    if "mask" not in batch:
        return jnp.asarray(batch["tokens"].size)
    return (batch["mask"] == 1).at[:, 0].set(True).sum()


def commit(model: Model, aux: dict[str, Any]) -> None:
    """Queues the features of a batch and updates the slow encoders; called between gradient and
    optimiser."""
    if "ids" in aux:
        if "inputs" in aux:
            model.queued.push(model.queue, aux["inputs"])
        model.queue.push(aux["text"], aux["image"], aux["ids"])
        if model.config.momentum:
            follow(model)


def _slow_features(model: Model, batch: dict[str, Any]) -> tuple[Array, Array]:
    """Features of texts and images from the slow encoders, without dropout."""
    slow = following(model)
    images = batch["images"].astype(jnp.float32) / 255
    return slow.text_features(batch["tokens"], batch.get("mask")), slow.image_features(images)


def _matching(
    model: Model,
    pair: tuple[Array, Array, Array],
    itc: Contrast,
    rows: fiber.Rows | None,
    rngs: Any,
) -> tuple[Array, Array]:
    """Loss and accuracy on 3b pairs: (image, text), (image, hard text), (hard image, text).

    Hard negatives are from the batch or, if its rows are given as inputs, from the queue too.
    """
    x, mask, y = pair
    b = len(x)
    own, same = jnp.arange(b), itc.same
    if rows is not None:
        same = same.at[:, b:].set(same[:, b:] | model.queued.alike(rows))
    n = b if rows is None else same.shape[1]
    of_image, some = fiber.negatives(itc.i2t[:, :n], same[:, :n], rngs)
    of_text, _ = fiber.negatives(itc.t2i[:, :n], same[:, :n], rngs)
    if rows is not None:
        hard = model.queued.drawn(rows, of_image, of_text)
        of_image = of_text = own + b
        beyond = (0, rows.mask.shape[1] - x.shape[1])
        x = jnp.pad(x, ((0, 0), beyond, (0, 0)))
        x = jnp.concatenate([x, lower_text(model, hard.tokens, hard.mask, rngs)])
        y = jnp.concatenate([y, lower_image(model, hard.images.astype(jnp.float32) / 255, rngs)])
        mask = jnp.concatenate([rows.mask, hard.mask])
    texts = jnp.concatenate([own, of_image, own])
    images = jnp.concatenate([own, own, of_text])
    sides = together(model, x[texts], mask[texts], y[images], rngs)
    judged = jnp.concatenate([mean(sides[0], mask[texts]), sides[1].mean(axis=1)], axis=1)
    logits = model.match(judged.astype(model.match.kernel[...].dtype))
    labels = jnp.concatenate([jnp.ones(b, jnp.int32), jnp.zeros(2 * b, jnp.int32)])
    counts = jnp.concatenate([jnp.ones(b, bool), some, some])
    return fiber.matching(logits, labels, counts)


def _turns(batch: dict[str, Any], training: bool) -> Array:
    """A number for each row, int [b], that decides what its text is predicted from.

    In training it is the row's index, whose place in the batch is random; in evaluation bits of a
    hash of `image_id` (Knuth's multiplicative), which do not depend on the batch.
    """
    if training or "image_id" not in batch:
        return jnp.arange(len(batch["tokens"]))
    mixed = batch["image_id"].astype(jnp.uint32) * jnp.uint32(2654435769)
    return (mixed >> 29).astype(jnp.int32)


def _writing(
    model: Model,
    tokens: Array,
    mask: Bool[Array, "b t"],
    seen: Array | None,
    keys: Array,
    episode: Episode,
    turn: Array,
    rngs: Any,
) -> tuple[Array, dict[str, Array]]:
    """The smoothed cross-entropy of each text, and its metrics.

    Of eight rows, five see their image and an empty memory, two only their memory, and one both,
    so the decoder learns to use either without the other.
    """
    recalls, both = turn % 4 == 1, turn % 8 == 3
    empty = larimar.read(model.memory.prior.mean, model.memory.address(keys))
    read = (recalls | both)[:, None]
    codes = episode.codes if seen is None else jnp.where(read, episode.codes, empty)
    context, sees = model.context(seen, codes)
    if seen is not None:
        sees = sees.at[:, :-1].set(~recalls[:, None])
    hidden = model.decoder.hidden(model.inputs(tokens), context, sees, rngs, model.remat)
    head = model.embed.embedding[...]
    plain, accuracy = chunked_scores(hidden, head, tokens, mask)
    # −0.9 log p(target) − 0.1 · mean of log p, as plain cross-entropy plus a difference of logits.
    above = to_float32(head[tokens]) - to_float32(head).mean(axis=0)
    margin = (to_float32(hidden) * above).sum(axis=-1)
    smoothed = plain + SMOOTHING * (margin * mask).sum() / mask.sum()
    metrics = {
        "text_loss": smoothed,
        "perplexity": jnp.exp(plain),
        "token_accuracy": accuracy,
    }
    return smoothed, metrics
