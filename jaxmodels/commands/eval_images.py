"""`jaxmodels eval` of a vision-language model: losses, retrieval, captions, similarities."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.architecture import ConfigView
from jaxmodels.errors import MISMATCH, USAGE, Problem

_CAPTIONS = {"bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr-D"}


def losses(
    package: Any, model: Any, data: Any, limit: int | None, batches: int | None
) -> dict[str, Any]:
    """`loss` and the loss's metrics (`itm_acc`, `text_loss`, `perplexity`, …), which are means over
    the held-out images, each with one of its texts, whatever the batch size.

    Args:
        package: the architecture.
        model: the model.
        data: images with captions or questions.
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
    return found


def retrieval(model: Any, data: Any, limit: int | None) -> dict[str, Any]:
    """How held-out images and their captions find each other.

    `t2i_recall_at_k` and `i2t_recall_at_k` for k of 1, 5 and 10: see `runtime.retrieval.recalls`;
    `images` and `captions` are the numbers of candidates.
    """
    from jaxmodels.runtime.batches import regroup
    from jaxmodels.runtime.evaluate import GROUP
    from jaxmodels.runtime.retrieval import Encoder, duplicate_ids, recalls

    images, captions_by_image = data.retrieval(limit)
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


def refuse_no_captions(model: Any, path: Path) -> None:
    """Raises Problem (usage) if a model cannot write captions."""
    import jaxmodels
    from jaxmodels.runtime.answers import can_caption

    if not can_caption(model):
        raise Problem(
            f"{jaxmodels.package_of(model).name} writes no captions to compare",
            where=str(path),
            why="its decoder reconstructs the text that it is given",
            fix="leave out --caption-metrics",
            exit_code=USAGE,
        )


def described(model: Any, data: Any, limit: int | None) -> dict[str, float]:
    """`bleu_4`, `rouge_l` and `cider` of the likeliest captions of held-out images.

    Args:
        model: one that `can_caption`.
        data: images with captions.
        limit: the most images; None: all held-out ones.
    """
    from jaxmodels.runtime.caption_metrics import caption_metrics
    from jaxmodels.runtime.training.samples import caption

    images, references = data.retrieval(limit)
    rows = (row for part in images for row in caption(model, data.tokenizer, part))
    return caption_metrics([data.tokenizer.decode(row) for row in rows], references)


def table(result: dict[str, Any], data: str) -> str:
    """The result as a Markdown table, in the form of BitGen's card; `data` names what it is of."""
    rows = [
        (f"{name} Recall@{k}", f"{result[f'{key}_recall_at_{k}']:.1%}")
        for k in (1, 5, 10)
        for key, name in (("t2i", "Text→Image"), ("i2t", "Image→Text"))
    ]
    if "itm_acc" in result:
        rows.append(("Image-text matching accuracy", f"{result['itm_acc']:.1%}"))
    rows += [(name, f"{result[key]:.3f}") for key, name in _CAPTIONS.items() if key in result]
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    count = f"{result['images']:,} images, {result['captions']:,} captions"
    return f"Held-out part of `{data}`: {count}.\n\n| Metric | Score |\n|---|---|\n{body}\n"


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
    chances = (f"{min(1.0, k / max(result['images'], 1)):>7.1%}" for k in (1, 5, 10))
    rows.append(f"{'text → image by chance':<42} {' '.join(chances)}")
    if "cider" in result:
        found = (f"{name} {result[key]:.3f}" for key, name in _CAPTIONS.items())
        rows.append(f"captions: {', '.join(found)}")
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
