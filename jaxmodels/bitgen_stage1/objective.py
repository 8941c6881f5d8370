"""The loss of Stage 1, and what training stores in queues and memory. Source: seed 004.

A contrastive loss, image-text matching, reconstruction of the text and the memory's divergence,
weighted as on the card.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.bitgen_stage1.decoder import Decoder
from jaxmodels.bitgen_stage1.memory import MemoryWrite
from jaxmodels.bitgen_stage1.model import Model
from jaxmodels.bitgen_stage1.parts import no_gradient
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.losses import chunked_scores
from jaxmodels.layers.precision import to_float32

# The loss compares the rows of a batch, so it cannot be computed in slices.
CROSS_ROW_LOSS = True
# The seed writes queues and memory in every forward pass, and so after each micro-batch.
EVERY_PASS = True

CONTRASTIVE, MATCHING, TEXT, DIVERGENCE = 1.0, 0.5, 0.5, 0.1
SMOOTHING = 0.1  # of the text's targets
# Losses are clipped here to compute the perplexity.
MOST_NATS = 10.0

Metrics = dict[str, Array]


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The weighted sum of the seed's losses.

    Args:
        model: the model; it is read, never changed.
        batch: `tokens` int32 [b, t], padded at the end. The decoder's targets are the tokens
            themselves, unshifted, and padding counts (quirks). `images` [b, y, x, 3], uint8, or
            floats in [0, 1]; without them there is no contrastive loss. `noise` [m, d], if given,
            replaces the memory's draw. Other keys are not read.
        rngs: has the stream `dropout`; None means evaluation: no dropout, a quantised decoder, the
            memory's mean, and unchanged queues.

    Returns:
        the loss, and aux: `metrics` under the card's names and, in training, the input of `commit`.

    Raises:
        Problem: (usage) the batch is larger than the queue.
    """
    tokens, images = batch["tokens"], batch.get("images")
    if images is not None and images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    noise = batch.get("noise")
    if noise is None and rngs is not None:
        noise = jax.random.normal(rngs.dropout(), model.memory.mean.shape)
    out = model(tokens, images, noise=noise, rngs=rngs)
    store: dict[str, Any] = {}
    mean = to_float32(model.memory.mean[...])
    writes = model.memory.write_count[...]
    if rngs is not None:
        store["written"] = written = model.memory.to_write(out.recall)
        mean = mean + no_gradient(model.memory.after(written) - mean)
        writes = writes.at[written.slots].add(1)
    decoded = model.decoded(tokens, out.embeddings, rngs)
    text, metrics = reconstruction(model.decoder, decoded, tokens, quantised=rngs is None)
    divergence = model.memory.divergence(mean)
    total = TEXT * text + DIVERGENCE * divergence
    metrics |= {
        "memory_kl_loss": divergence,
        "memory_utilization": jnp.mean(writes > 0),
        "memory_quality": jnp.mean(model.memory.quality[...]),
        "temperature": model.fusion.temperature[...],
    }
    if out.image_features is not None:
        features = out.text_features, out.image_features
        queues = _queues(model, *features, store, training=rngs is not None)
        contrast, match, more = contrasted(*features, *queues, model.fusion.temperature[...])
        total = total + CONTRASTIVE * contrast + MATCHING * match
        metrics |= more
    logged = {name: no_gradient(value).astype(jnp.float32) for name, value in metrics.items()}
    return total, {"metrics": logged, **store}


def commit(model: Model, aux: dict[str, Any]) -> None:
    """Stores queues, memory and counters of a training pass; called between gradient and optimiser.

    The memory's mean is a parameter: this writes it, and the optimiser then updates it
    (`COMMITTED`).
    """
    fusion, memory = model.fusion, model.memory
    if "queued" in aux:
        fusion.text_queue[...], fusion.image_queue[...], fusion.queue_ptr[...] = aux["queued"]
    if "written" in aux:
        written: MemoryWrite = aux["written"]
        memory.mean.set_value(memory.after(written).astype(memory.mean[...].dtype))
        memory.write_count.set_value(memory.write_count[...].at[written.slots].add(1))
        memory.read_count.set_value(memory.read_count[...] + written.hits)


def contrasted(
    text: Float[Array, "b d"],
    image: Float[Array, "b d"],
    texts: Float[Array, "d n"],
    images: Float[Array, "d n"],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
    """The contrastive loss, the matching loss, and their metrics.

    Args:
        text: unit features of texts.
        image: unit features of their images, in the same order.
        texts: the queue of texts; in training the batch is among them (a quirk).
        images: the queue of images.
        temperature: divides cosines.
    """
    rows = jnp.arange(len(text))
    near = _product(text, image.T)  # text by image
    temperature = to_float32(temperature)
    to_image = jnp.concatenate([near, _product(text, images)], axis=1) / temperature
    to_text = jnp.concatenate([near.T, _product(image, texts)], axis=1) / temperature
    contrast = (_first(to_image) + _first(to_text)) / 2
    others = jnp.where(rows[:, None] == rows, -jnp.inf, no_gradient(near))
    hardest = near[rows, others.argmax(axis=1)]
    logits, labels = jnp.concatenate([near[rows, rows], hardest]), jnp.repeat(rows < 0, 2)
    labels = labels.at[: len(rows)].set(True)
    match = jnp.mean(jax.nn.softplus(jnp.where(labels, -logits, logits)))
    return (
        contrast,
        match,
        {
            "contrastive_loss": contrast,
            "acc_t2i": jnp.mean(near.argmax(axis=1) == rows),
            "acc_i2t": jnp.mean(near.argmax(axis=0) == rows),
            "itm_loss": match,
            "itm_acc": jnp.mean((logits > 0) == labels),
        },
    )


def reconstruction(
    decoder: Decoder,
    decoded: Float[Array, "b t d"],
    targets: Int[Array, "b t"],
    *,
    quantised: bool,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy with smoothed targets, in nats, and its metrics.

    In training, logits are never whole in memory: all of them are gigabytes for the card's batch.
    Quantised, all positions share one scale, so that all logits are computed at once.
    """
    head = decoder.head
    if quantised:
        logs = jax.nn.log_softmax(decoder.logits(decoded, quantised=True), axis=-1)
        picked = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
        loss = jnp.mean(-(1 - SMOOTHING) * picked - SMOOTHING * logs.mean(axis=-1))
        right = jnp.mean(logs.argmax(axis=-1) == targets)
    else:
        kernel, bias = head.kernel[...], head.bias[...]
        states = decoded.astype(kernel.dtype)
        loss, right = chunked_scores(
            states, kernel, targets, tied=False, bias=bias, smoothing=SMOOTHING
        )
    return loss, {
        "text_loss": loss,
        "perplexity": jnp.exp(jnp.minimum(loss, MOST_NATS)),
        "token_accuracy": right,
    }


def _queues(
    model: Model, text: Array, image: Array, store: dict[str, Any], training: bool
) -> tuple[Array, Array]:
    """The queues of texts and images, in training with the batch already added."""
    fusion = model.fusion
    if not training:
        return fusion.text_queue[...], fusion.image_queue[...]
    if len(text) > fusion.text_queue.shape[1]:
        raise Problem(
            f"a batch of {len(text)} does not fit into a queue of {fusion.text_queue.shape[1]}",
            fix="change --batch or --model.queue",
            exit_code=USAGE,
        )
    store["queued"] = fusion.queued(text, image)
    return store["queued"][:2]


def _product(a: Array, b: Array) -> Array:
    """a · b in full precision on every platform; the product is small."""
    return jnp.matmul(a, b.astype(a.dtype), precision=jax.lax.Precision.HIGHEST)


def _first(similarities: Array) -> Array:
    """Cross-entropy of rows whose target is the diagonal."""
    logs = jax.nn.log_softmax(similarities, axis=-1)
    return -jnp.mean(jnp.diagonal(logs))
