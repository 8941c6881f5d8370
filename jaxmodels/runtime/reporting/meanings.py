"""What each metric means, in a sentence, and what guessing would reach."""

from collections.abc import Mapping
from math import log
from typing import Any

MEANINGS = {
    "loss": "What training minimises, in nats; lower is better.",
    "grad_norm": "Length of the gradient before clipping. Spikes announce trouble.",
    "lr": "Learning rate.",
    "tokens_per_second": "Tokens trained on in a second, by all devices.",
    "images_per_second": "Images trained on in a second, by all devices.",
    "mfu": "Model FLOPs utilisation: the share of the chips' peak that the model's own arithmetic "
    "reaches.",
    "text_loss": "Cross-entropy of the text that the model writes, in nats a token.",
    "image_loss": "Mean square error of each patch of an image, predicted from those before it, in "
    "colours of which a standard deviation is 1.",
    "perplexity": "The exponential of the text's loss: between how many tokens the model wavers.",
    "token_accuracy": "Share of tokens for which the likeliest is the right one.",
    "contrastive_loss": "Loss of finding the text of an image, and the image of a text, among "
    "those of the batch and the queue, in nats.",
    "acc_t2i": "Share of texts of a batch that find their image first.",
    "acc_i2t": "Share of images of a batch that find their text first.",
    "itm_loss": "Loss of telling matching pairs of image and text from others, in nats.",
    "itm_acc": "Share of pairs of image and text that are rightly called matching or not.",
    "temperature": "Learned temperature of the similarities; smaller makes them sharper.",
    "memory_kl_loss": "Divergence of the memory from its prior, in nats.",
    "memory_utilization": "Share of the memory's slots that are used.",
    "memory_quality": "How well the memory returns what was written: 1 is exactly.",
}

STATS = {
    "grad_norm": "Length of each layer's gradient.",
    "grad_mean_abs": "Mean size of a gradient's numbers.",
    "grad_vanishing": "Share of the gradient's numbers below 1e-6: near 1, a layer learns nothing.",
    "norm": "Length of each layer's parameters.",
    "update_ratio": "Length of a step, as a share of the parameters': about 0.001 is usual.",
    "grad_exploding": "Share of the gradient's numbers above 100.",
}


def meaning(name: str, config: Mapping[str, Any]) -> str:
    """The sentence for a metric, with its chance level where there is one; "" for unknown ones.

    Args:
        name: as in metrics.jsonl.
        config: the run's config.json.
    """
    text, level = MEANINGS.get(name, ""), chance(name, config)
    return f"{text} By chance: {level:.3g}." if text and level is not None else text


def chance(name: str, config: Mapping[str, Any]) -> float | None:
    """What guessing would reach; None where it means nothing or the settings do not say it."""
    model, recipe = (config.get(part) or {} for part in ("model", "recipe"))
    vocab, batch = (
        value if isinstance(value, int) and value > 1 else None
        for value in (model.get("vocab"), recipe.get("batch"))
    )
    if name in ("loss", "text_loss") and vocab:
        # A sum of losses, or one of two kinds.
        several = name == "loss" and ("slots" in model or model.get("images"))
        return None if several else log(vocab)
    if name == "perplexity" and vocab:
        return float(vocab)
    if name == "token_accuracy" and vocab:
        return 1 / vocab
    if name in ("acc_t2i", "acc_i2t") and batch:  # of training; evaluation has groups of its own
        return 1 / batch
    if name == "itm_acc":  # of three pairs of a bitgen one matches, of two of a stage 1
        return 2 / 3 if config.get("arch") == "bitgen" else 1 / 2
    return None
