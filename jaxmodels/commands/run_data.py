"""The data of a run: opened as its model wants it, described, and what is sampled from it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.architecture import Architecture, ConfigView
from jaxmodels.cli import say
from jaxmodels.commands.initial import refuse_own_characters
from jaxmodels.commands.resume import own_sizes, own_tokenizer
from jaxmodels.commands.train_options import Request, Train
from jaxmodels.commands.unknown import say_unknown
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.multihost.processes import is_primary
from jaxmodels.runtime.stop import Stop
from jaxmodels.sizes import vocab_used

_PADDING = 128  # fewer rows than these are taken for padding of the vocabulary
_SAMPLES = 8  # held-out images that are captioned as training goes


def refuse_other_kind(spec: str, config: Any, arch: str) -> None:
    """Refuses text for a model that sees images, and images for a language model.

    Raises:
        Problem: (usage) naming what goes with the model; and as `data_pipelines`' `open_data`.
    """
    from data_pipelines.captions.opening import has_captions
    from jaxmodels.runtime.batches import sees

    if has_captions(spec) == sees(config):
        return
    wants, has, fix = (
        ("images with captions", "text", "shapes, coco_captions or images:FOLDER")
        if sees(config)
        else ("text", "images with captions", "pydoc or text:PATH")
    )
    raise Problem(
        f"{arch} learns from {wants}, and the data is {has}",
        where=spec,
        fix=f"give --data {fix}, for example; `jaxmodels data list` names all",
        exit_code=USAGE,
    )


def open_data(
    run: Path, options: Train[Any], tokenizer: Any, has_checkpoint: bool, stop: Stop
) -> Any:
    """The run's data. Without a checkpoint, what another start prepared is prepared anew."""
    from data_pipelines import pipelines
    from data_pipelines.errors import DataProblem

    recipe, folder = options.recipe, run / "data"

    def opened() -> Any:
        return pipelines.open_data(
            recipe.data,
            folder=folder,
            context=options.model.context,
            batch=recipe.batch * recipe.accum,
            seed=recipe.seed,
            valid_fraction=recipe.valid_fraction,
            min_freq=recipe.min_freq,
            tokenizer=tokenizer or recipe.tokenizer,
            progress=stop.check,
            segments=recipe.segments,
            vocab_documents=recipe.vocab_documents,
            side=ConfigView(options.model).image_size,
        )

    try:
        data = opened()
    except DataProblem as problem:
        there = Path(problem.where)  # a source of a mixture is prepared below the folder
        ours = there in (folder, *folder.glob("[0-9]*")) and _prepared(folder)
        if has_checkpoint or not ours or not is_primary():
            raise
        say(f"{problem.what}; no step was trained on them, so they are prepared again")
        shutil.rmtree(folder)
        data = opened()
    for note in data.notes:
        say(note)
    return data


def _prepared(folder: Path) -> bool:
    """Whether `open_data` wrote a folder; nothing else is ever removed."""
    return any((f / "manifest.json").is_file() for f in (folder, *folder.glob("[0-9]*")))


def tokenizer_of(request: Request, begun: bool) -> Any:
    """The tokeniser that the data must have: the run's own, or that of --init; None for the data's.

    Raises:
        Problem: (mismatch) --init has learned ids whose meaning is not known.
    """
    if begun:
        return own_tokenizer(request.run)
    source = _source_of_words(request)
    if source is None:
        return None
    if source.tokenizer is None:
        refuse_own_characters(request.recipe, source)
    return source.tokenizer


def _source_of_words(request: Request) -> Any:
    """The checkpoint of --init, if it has a vocabulary; an image tower alone has none."""
    source = request.source
    return source if source is not None and vocab_used(source.config) else None


def sized(request: Request, data: Any, begun: bool) -> Request:
    """The request with the sizes of the model that follow from the data's vocabulary.

    Raises:
        Problem: (mismatch) the model has fewer rows than the data has tokens.
    """
    source = _source_of_words(request)
    sizes = own_sizes(request.run) if begun else {}
    if not sizes and source is None and data.vocab_size:
        sizes = _fitting(request, data.vocab_size)
    tokenizer = str(request.run / source.tokenizer.FILE) if source and source.tokenizer else ""
    request = request.replace(model=replace(request.config, **sizes), tokenizer=tokenizer)
    if data.vocab_needed > request.config.vocab:
        raise Problem(
            f"token {data.vocab_needed - 1} does not fit a vocabulary of {request.config.vocab}",
            where=data.spec,
            fix=f"give --model.vocab {data.vocab_needed} or more"
            if source is None and not begun
            else "give data made with the checkpoint's tokeniser: --tokenizer PATH names it, or "
            "--data bin:PATH what it made",
            exit_code=MISMATCH,
        )
    return request


def _fitting(request: Request, tokens: int) -> dict[str, int]:
    """The sizes of the model that follow from the data's tokens; says which were given otherwise.

    A vocabulary that was given, or of which the preset pads a few rows, may have more rows than
    tokens, if the model tells the two apart.
    """
    model = request.config
    preset = jaxmodels.preset(f"{request.arch}:{request.preset}")[2].vocab
    if ConfigView(model).tokens is None:
        if model.vocab not in (preset, tokens):
            say(f"model.vocab set to {tokens}, as the data has, not {model.vocab}")
        return {"vocab": tokens}
    given = model.vocab != preset
    if model.vocab >= tokens and (given or model.vocab - tokens < _PADDING):
        if tokens not in (model.vocab, model.tokens):
            say(f"model.tokens set to {tokens}, as the data has; model.vocab stays {model.vocab}")
        return {"vocab": model.vocab, "tokens": tokens}
    if given:
        say(f"model.vocab raised from {model.vocab} to {tokens}, as the data has")
    return {"vocab": tokens, "tokens": tokens}


def describe(request: Request, data: Any) -> None:
    """Prints what is trained on what, and where."""
    import jax

    from jaxmodels.commands.list import parameter_count

    count = parameter_count(request.arch, request.config)
    recipe, device = request.recipe, jax.devices()[0]
    rows = recipe.batch * recipe.accum
    images, a_step = "", f"{rows * request.config.context:,} tokens"
    if hasattr(data, "train_images"):
        a_step = f"{rows:,} images"
        images = f"{data.train_images:,} images, and {data.valid_images:,} held out; "
    say(
        f"{request.arch}:{request.preset}  {count:,} parameters  "
        f"{jax.device_count()} × {device.device_kind}  {recipe.dtype}",
        f"data {data.spec}: {images}{data.train_tokens:,} tokens, and {data.valid_tokens:,} "
        "held out" + (f", vocabulary {data.vocab_size}" if data.vocab_size else ""),
        f"{recipe.steps:,} steps of {a_step}",
    )


def sampler(
    package: Architecture, config: Any, recipe: Recipe, data: Any
) -> Callable[..., Any] | None:
    """What shows as training goes what the model writes; None if it cannot."""
    import numpy as np

    from jaxmodels.runtime.batches import sees
    from jaxmodels.runtime.training.samples import caption_sampler, captions, text_sampler

    if data.tokenizer is None or not recipe.sample_every:
        return None
    if not sees(config):
        say_unknown(recipe.prompt, data.tokenizer, "the prompt of the samples (--prompt)")
        return text_sampler(data.tokenizer, recipe.prompt, recipe.seed)
    if not captions(package.Model):
        say(f"{package.name} writes no captions, so there are no samples")
        return None
    images, said = data.retrieval(_SAMPLES)
    return caption_sampler(data.tokenizer, np.concatenate(list(images)), [one[0] for one in said])


def asked_for(package: Architecture, config: Any) -> str:
    """What `generate` may be asked for of such a model, as flags; empty if it writes nothing."""
    from jaxmodels.runtime.batches import sees
    from jaxmodels.runtime.training.samples import captions

    if not sees(config):
        return "--prompt 'The '"
    return "--image FILE" if captions(package.Model) else ""
