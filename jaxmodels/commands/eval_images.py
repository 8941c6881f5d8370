"""`jaxmodels eval` of a vision-language model: retrieval, losses, similarities."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.architecture import ConfigView
from jaxmodels.errors import MISMATCH, USAGE, Problem


def measure(package: Any, model: Any, data: Any, limit: int | None, batches: int | None) -> Any:
    """The result of `eval --json`.

    `loss` and the loss's metrics (`itm_acc`, `text_loss`, `perplexity`, …) are means over the
    held-out images, each with one of its captions, whatever the batch size. `t2i_recall_at_k` and
    `i2t_recall_at_k` for k of 1, 5 and 10: see `runtime.retrieval.recalls`; `images` and `captions`
    are the numbers of candidates.

    Args:
        package: the architecture.
        model: the model.
        data: images with captions.
        limit: the most images; None: all held-out ones.
        batches: the most batches for the loss.
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
    images, captions_by_image = data.retrieval(limit)
    return found | _ranked(model, data, images, captions_by_image)


def _ranked(
    model: Any, data: Any, images: Any, captions_by_image: list[list[str]]
) -> dict[str, Any]:
    """Recall among images, given in batches, and the captions of each image."""
    from jaxmodels.runtime.batches import regroup
    from jaxmodels.runtime.evaluate import GROUP
    from jaxmodels.runtime.retrieval import Encoder, duplicate_ids, recalls

    captions = [caption for group in captions_by_image for caption in group]
    image_of_text = np.repeat(
        np.arange(len(captions_by_image)), [len(group) for group in captions_by_image]
    )
    pixels = [part["images"] for part in regroup(({"images": x} for x in images), GROUP)]
    tokens = [data.encode(captions[i : i + GROUP]) for i in range(0, len(captions), GROUP)]
    encoder = Encoder(model)
    ranked = recalls(
        encoder.images(pixels),
        encoder.texts(tokens),
        image_of_text,
        image_ids=duplicate_ids(row for part in pixels for row in part),
        text_ids=duplicate_ids(row for part in tokens for row in part["tokens"]),
    )
    return ranked | {"images": len(captions_by_image), "captions": len(captions)}


def lines(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    parts = [f"loss {result['loss']:.4f}"]
    if "text_loss" in result:
        parts.append(f"text {result['text_loss']:.4f} (perplexity {result['perplexity']:.3f})")
    if "image_loss" in result:
        parts.append(f"contrast {result['contrastive_loss']:.4f}")
        parts.append(f"next patch {result['image_loss']:.4f}")
    if "itm_acc" in result:
        parts.append(f"image-text matching accuracy {result['itm_acc']:.1%}")
    head = f"among {result['images']:,} images, {result['captions']:,} captions"
    rows = [f"{head:<42} {'R@1':>7} {'R@5':>7} {'R@10':>7}"]
    for name, what in (("t2i", "text → image"), ("i2t", "image → text, any of its captions")):
        found = (f"{result[f'{name}_recall_at_{k}']:>7.1%}" for k in (1, 5, 10))
        rows.append(f"{what:<42} {' '.join(found)}")
    return [", ".join(parts), *rows]


def compare(model: Any, tokenizer: Any, files: tuple[Path, ...], texts: tuple[str, ...]) -> Any:
    """Similarities of every image and text, for `eval --image … --caption … --json`.

    Raises:
        Problem: (mismatch) there is no tokeniser; and as `read_images`.
    """
    from data_pipelines.captions.tokens import encode_caption, pad
    from jaxmodels.commands.unknown import warn_unknown
    from jaxmodels.runtime.retrieval import similarity

    if tokenizer is None:
        raise Problem(
            "the checkpoint has no vocabulary, so text cannot be tokenised",
            fix="give its characters.json or tokenizer.json with --vocab FILE",
            exit_code=MISMATCH,
        )
    for text in texts:
        warn_unknown(text, tokenizer, "this caption")
    ids = [encode_caption(text, tokenizer) for text in texts]
    longest = ConfigView(model.config).caption or model.config.context
    tokens, mask = pad(ids, longest, tokenizer)
    found = similarity(model, read_images(files, model.config.image_size), tokens, mask)
    return {
        "similarities": [
            {"image": str(file), "caption": text, "similarity": float(found[i, j])}
            for i, file in enumerate(files)
            for j, text in enumerate(texts)
        ]
    }


def read_images(files: tuple[Path, ...], side: int) -> np.ndarray:
    """The centre squares of image files, uint8 [n, side, side, 3], as in training.

    Raises:
        DataProblem: (corrupt) a file is missing, or not a readable image.
    """
    from data_pipelines.captions.pixels import square
    from data_pipelines.images import read_image

    return np.stack([square(read_image(file), side) for file in files])
