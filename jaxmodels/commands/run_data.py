"""The data of a run: opened for its model, and described."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.architecture import ConfigView
from jaxmodels.cli import say
from jaxmodels.commands.initial import refuse_new_vocabulary, refuse_other_tokenizer
from jaxmodels.commands.resume import run_tokenizer, run_vocabulary_sizes
from jaxmodels.commands.train_options import Request, Train, value_of
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.runtime.multihost.processes import is_primary
from jaxmodels.runtime.stop import Stop
from jaxmodels.sizes import vocab_used

_PADDING = 128  # fewer unused rows than this count as padding of the vocabulary


def refuse_other_kind(spec: str, config: Any, arch: str) -> None:
    """Refuses text for a vision-language model, images for a language model, and questions for one
    that writes no answers.

    Raises:
        Problem: (usage) with data that fits the model; and as `data_pipelines`' `open_data`.
    """
    from data_pipelines.mixture_spec import asks, kinds_of
    from jaxmodels.commands.eval_questions import refuse_no_answers
    from jaxmodels.runtime.batches import takes_images, takes_text

    names = {"images": "images with captions", "text": "text"}
    takes = {"images": takes_images(config), "text": takes_text(config)}
    wrong = [kind for kind in sorted(kinds_of(spec)) if not takes[kind]]
    if not wrong:
        if asks(spec):
            refuse_no_answers(config, spec)
        return
    fix = f"give --data {'shapes, coco_captions or images:FOLDER' if takes['images'] else ''}"
    if takes["text"]:
        fix = "give --data pydoc or text:PATH"
    fix += ", for example; `jaxmodels data list` names all"
    if "images" in jaxmodels.package_of(config).ADDED:
        fix += f"; or let the model read images: {arch}:tiny-images, or --model.images"
    raise Problem(
        f"{arch} learns from {' and '.join(names[kind] for kind in takes if takes[kind])}, "
        f"and the data is {names[wrong[0]]}",
        where=spec,
        fix=fix,
        exit_code=USAGE,
    )


def image_sizes(config: Any) -> dict[str, Any]:
    """The options of `data_pipelines`' `open_data` that a model's images and captions decide."""
    view = ConfigView(config)
    return {"side": view.image_size, "patch": view.patch, "caption": view.caption}


def open_data(
    run: Path, options: Train[Any], tokenizer: Any, has_checkpoint: bool, stop: Stop
) -> Any:
    """The run's data. Without a checkpoint, data of an earlier start is prepared again if it
    differs."""
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
            new_words=options.new_words and not has_checkpoint,
            **image_sizes(options.model),
        )

    try:
        data = opened()
    except DataProblem as problem:
        there = Path(problem.where)  # a source of a mixture is prepared below the folder
        ours = there in (folder, *folder.glob("[0-9]*")) and _prepared(folder)
        if has_checkpoint or not ours or not is_primary():
            raise
        say(f"{problem.what}; no step was trained on it, so it is prepared again")
        shutil.rmtree(folder)
        data = opened()
    for note in data.notes:
        say(note)
    if options.init and not options.new_words and not has_checkpoint and _lacks_words(data):
        say("these words cannot be read or learned; --new-words adds them to the vocabulary")
    return data


def _lacks_words(data: Any) -> bool:
    """Whether captions or questions have words that a vocabulary of words does not."""
    from data_pipelines.words import are_words

    return hasattr(data, "captions") and data.captions.unknown > 0 and are_words(data.tokenizer)


def _prepared(folder: Path) -> bool:
    """Whether `open_data` wrote the folder; no other is ever removed."""
    return any((f / "manifest.json").is_file() for f in (folder, *folder.glob("[0-9]*")))


def tokenizer_of(request: Request, resuming: bool) -> Any:
    """The tokeniser that the data must have: the run's, or that of --init; None: one made for the
    data.

    Raises:
        Problem: (mismatch) --init has a vocabulary, but no tokeniser, or another than --tokenizer.
    """
    if resuming:
        return run_tokenizer(request.run)
    source = _source_of_words(request)
    if source is None:
        return None
    if source.tokenizer is None:
        refuse_new_vocabulary(request.recipe, source)
    else:
        refuse_other_tokenizer(value_of(request.argv, "--tokenizer"), source)
    return source.tokenizer


def _source_of_words(request: Request) -> Any:
    """The checkpoint of --init, if it has a vocabulary; an image tower has none."""
    source = request.source
    return source if source is not None and vocab_used(source.config) else None


def fit_to_data(request: Request, data: Any, resuming: bool) -> Request:
    """The request with the model's vocabulary sizes set from the data.

    Raises:
        Problem: (mismatch) the model's vocabulary is smaller than the data's.
    """
    source = _source_of_words(request)
    sizes = run_vocabulary_sizes(request.run) if resuming else {}
    if not sizes and source is None and data.vocab_size:
        sizes = _fitting(request, data.vocab_size)
    elif not sizes and source is not None and request.options.new_words:
        sizes = _grown(source.config, data.vocab_size)
    tokenizer = str(request.run / source.tokenizer.FILE) if source and source.tokenizer else ""
    request = request.replace(model=replace(request.config, **sizes), tokenizer=tokenizer)
    if data.vocab_needed > request.config.vocab:
        raise Problem(
            f"token {data.vocab_needed - 1} does not fit a vocabulary of {request.config.vocab}",
            where=data.spec,
            fix=f"give --model.vocab {data.vocab_needed} or more"
            if source is None and not resuming
            else "give the checkpoint's tokeniser with --tokenizer PATH, or text encoded by it: "
            "--data bin:PATH",
            exit_code=MISMATCH,
        )
    return request


def _grown(config: Any, tokens: int) -> dict[str, int]:
    """The vocabulary sizes of a model with the new words; prints how many there are."""
    say(f"{tokens - vocab_used(config)} new words: the vocabulary has {tokens} tokens")
    if ConfigView(config).tokens is None:
        return {"vocab": max(config.vocab, tokens)}
    return {"vocab": max(config.vocab, tokens), "tokens": tokens}


def _fitting(request: Request, tokens: int) -> dict[str, int]:
    """The model's vocabulary sizes for the data's tokens; prints those that override given ones.

    A vocabulary that was given, or that the preset pads by a few rows, may have more rows than
    tokens, if the model distinguishes the two.
    """
    model = request.config
    preset = jaxmodels.preset(f"{request.arch}:{request.preset}")[2].vocab
    if ConfigView(model).tokens is None:
        if model.vocab not in (preset, tokens):
            say(f"model.vocab is set to {tokens} by the data, not {model.vocab}")
        return {"vocab": tokens}
    given = model.vocab != preset
    if model.vocab >= tokens and (given or model.vocab - tokens < _PADDING):
        if tokens not in (model.vocab, model.tokens):
            say(f"model.tokens is set to {tokens} by the data; model.vocab stays {model.vocab}")
        return {"vocab": model.vocab, "tokens": tokens}
    if given:
        say(f"model.vocab is raised from {model.vocab} to {tokens} by the data")
    return {"vocab": tokens, "tokens": tokens}


def describe(request: Request, data: Any) -> None:
    """Prints the model, the data and the devices."""
    import jax

    from jaxmodels.commands.list import parameter_count

    count = parameter_count(request.arch, request.config)
    recipe, device = request.recipe, jax.devices()[0]
    rows = recipe.batch * recipe.accum
    images, a_step = "", f"{rows * request.config.context:,} tokens"
    if hasattr(data, "train_images"):
        a_step = f"{a_step} or {rows:,} images" if hasattr(data, "text") else f"{rows:,} images"
        images = f"{data.train_images:,} images, and {data.valid_images:,} held out; "
    say(
        f"{request.arch}:{request.preset}  {count:,} parameters  "
        f"{jax.device_count()} × {device.device_kind}  {recipe.dtype}",
        f"data {data.spec}: {images}{data.train_tokens:,} tokens, and {data.valid_tokens:,} "
        "held out" + (f", vocabulary {data.vocab_size}" if data.vocab_size else ""),
        f"{recipe.steps:,} steps of {a_step}",
    )
