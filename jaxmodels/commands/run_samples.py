"""What a run shows during training and how it goes on after it."""

from collections.abc import Callable
from typing import Any

from jaxmodels.architecture import Architecture, ModelView
from jaxmodels.cli import say
from jaxmodels.commands.unknown import warn_unknown
from jaxmodels.recipe import Recipe

_SAMPLES = 8  # held-out images that are captioned or asked about during training


def sampler(
    package: Architecture, config: Any, recipe: Recipe, data: Any
) -> Callable[..., Any] | None:
    """Makes the samples shown during training; None if the model cannot write any."""
    import numpy as np

    from jaxmodels.runtime.answers import can_caption
    from jaxmodels.runtime.batches import takes_text
    from jaxmodels.runtime.training.samples import (
        both_samplers,
        caption_sampler,
        image_sampler,
        text_sampler,
    )

    if data.tokenizer is None or not recipe.sample_every:
        return None
    of_text = None
    if takes_text(config):
        warn_unknown(recipe.prompt, data.tokenizer, "the prompt of the samples (--prompt)")
        of_text = text_sampler(data.tokenizer, recipe.prompt, recipe.seed)
    if not hasattr(data, "retrieval"):
        return of_text
    if not data.valid_images:
        say("no image is held out, so there are no samples of images")
        return of_text
    if hasattr(data, "asked"):
        return _question_sampler(data)
    found, references = data.retrieval(_SAMPLES)
    images = np.concatenate(list(found))
    if ModelView(package.Model).drawn is not None:
        of_images = image_sampler(images)
        return both_samplers(of_text, of_images) if hasattr(data, "text") else of_images
    if not can_caption(package.Model):
        say(f"{package.name} cannot write captions, so there are no samples")
        return None
    return caption_sampler(data.tokenizer, images, [one[0] for one in references])


def _question_sampler(data: Any) -> Callable[..., Any]:
    """Answers a question about each of the first held-out images."""
    import numpy as np

    from data_pipelines.captions.question_dataset import prompt_of
    from jaxmodels.runtime.training.samples import question_sampler

    by_image: dict[int, list[Any]] = {}
    for image, question in data.asked(_SAMPLES):
        by_image.setdefault(image, []).append(question)
    # From image to image one of another kind.
    asked = [each[2 * i % len(each)] for i, each in enumerate(by_image.values())]
    return question_sampler(
        data.tokenizer,
        data.pixels(np.asarray(list(by_image))),
        [prompt_of(question.text) for question in asked],
        [question.answers[0] for question in asked],
    )


def generate_flags(package: Architecture, config: Any) -> str:
    """The flags of `generate` for such a model; empty if it cannot generate."""
    from jaxmodels.runtime.answers import can_caption
    from jaxmodels.runtime.batches import takes_text

    if takes_text(config):
        return "--prompt 'The '"
    return "--image FILE" if can_caption(package.Model) else ""
