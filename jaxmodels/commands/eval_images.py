"""`jaxmodels eval` of a model that sees images: retrieval, losses, similarities."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.errors import MISMATCH, USAGE, Problem


def measured(package: Any, model: Any, data: Any, limit: int | None, batches: int | None) -> Any:
    """The answer of `eval --json`.

    `loss` and all that the loss tells (the card's names: `itm_acc`, `text_loss`, `perplexity`, …)
    are means over the held-out images, each with one of its captions; how they come in batches
    changes none of them. `t2i_recall_at_k` and
    `i2t_recall_at_k` for k of 1, 5 and 10: see `runtime.retrieval.recalls`; `images` and
    `captions` are among how many.

    Args:
        package: of the model.
        model: the model.
        data: images with captions.
        limit: take only so many images; None: all that are held out.
        batches: take only so many batches for the loss.
    """
    from jaxmodels.runtime.batches import first_rows
    from jaxmodels.runtime.evaluate import evaluate, loss_function
    from jaxmodels.runtime.paths import split

    if not data.valid_images:
        raise Problem(
            "nothing is held out to measure on",
            where=data.spec,
            fix="give --valid-fraction, for example 0.1",
            exit_code=USAGE,
        )
    graphdef, params, model_state = split(model)
    rows = data.valid(batches)
    if limit is not None:
        rows = first_rows(data.valid(), min(limit, (batches or limit) * data.batch))
    found = evaluate(loss_function(package, graphdef), params, model_state, rows)
    assert found is not None
    images, said = data.retrieval(limit)
    return found | _ranked(model, data, images, said)


def _ranked(model: Any, data: Any, images: Any, said: list[list[str]]) -> dict[str, Any]:
    """Recall among images, given in batches, and the captions of each."""
    from jaxmodels.runtime.batches import grouped
    from jaxmodels.runtime.evaluate import GROUP
    from jaxmodels.runtime.retrieval import Encoder, kinds, recalls

    captions = [caption for own in said for caption in own]
    owner = np.repeat(np.arange(len(said)), [len(own) for own in said])
    pixels = [part["images"] for part in grouped(({"images": x} for x in images), GROUP)]
    tokens = [data.encode(captions[i : i + GROUP]) for i in range(0, len(captions), GROUP)]
    encoder = Encoder(model)
    ranked = recalls(
        encoder.images(pixels),
        encoder.texts(tokens),
        owner,
        images_alike=kinds(row for part in pixels for row in part),
        texts_alike=kinds(row for part in tokens for row in part["tokens"]),
    )
    return ranked | {"images": len(said), "captions": len(captions)}


def lines(result: dict[str, Any]) -> list[str]:
    """The same for people."""
    told = [f"loss {result['loss']:.4f}"]
    if "text_loss" in result:
        told.append(f"text {result['text_loss']:.4f} (perplexity {result['perplexity']:.3f})")
    if "itm_acc" in result:
        told.append(f"image-text matching right {result['itm_acc']:.1%}")
    head = f"among {result['images']:,} images, {result['captions']:,} captions"
    rows = [f"{head:<42} {'R@1':>7} {'R@5':>7} {'R@10':>7}"]
    for name, what in (("t2i", "text → image"), ("i2t", "image → text, any of its captions")):
        found = (f"{result[f'{name}_recall_at_{k}']:>7.1%}" for k in (1, 5, 10))
        rows.append(f"{what:<42} {' '.join(found)}")
    return [", ".join(told), *rows]


def compared(model: Any, tokenizer: Any, files: tuple[Path, ...], texts: tuple[str, ...]) -> Any:
    """Similarities of every image with every text, as `eval --image … --caption … --json`.

    Raises:
        Problem: (mismatch) there is no tokeniser; and what `read_images` raises.
    """
    from data_pipelines.captions.tokens import encode_caption, pad
    from jaxmodels.commands.unknown import say_unknown
    from jaxmodels.runtime.retrieval import similarity

    if tokenizer is None:
        raise Problem(
            "the checkpoint has no vocabulary, so text cannot be turned into tokens",
            fix="give its characters.json or tokenizer.json with --vocab FILE",
            exit_code=MISMATCH,
        )
    for text in texts:
        say_unknown(text, tokenizer, "this caption")
    ids = [encode_caption(text, tokenizer) for text in texts]
    tokens, mask = pad(ids, model.config.context, tokenizer)
    found = similarity(model, read_images(files, model.config.image_size), tokens, mask)
    return {
        "similarities": [
            {"image": str(file), "caption": text, "similarity": float(found[i, j])}
            for i, file in enumerate(files)
            for j, text in enumerate(texts)
        ]
    }


def read_images(files: tuple[Path, ...], side: int) -> np.ndarray:
    """The middle squares of image files, uint8 [n, side, side, 3], as in training.

    Raises:
        DataProblem: (corrupt) a file is missing, or no image that can be read.
    """
    from data_pipelines.captions.pixels import square
    from data_pipelines.images import read_image

    return np.stack([square(read_image(file), side) for file in files])
