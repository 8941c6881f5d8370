"""`jaxmodels eval`: loss, perplexity and bits per character on held-out text; or retrieval."""

import tempfile
from dataclasses import dataclass
from itertools import repeat
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from jaxmodels.architecture import Architecture
from jaxmodels.cli import emit, merge_repeated, parse, refuse_repeated, say
from jaxmodels.errors import MISMATCH, UNVERIFIED, USAGE, Problem, within
from jaxmodels.files import refuse_existing, write_text
from jaxmodels.sizes import vocab_used


@dataclass(frozen=True)
class Eval:
    """Measure the model in PATH on the held-out end of a text, on held-out images, or on tasks."""

    path: Positional[Path]
    """Run directory, checkpoint or model directory."""
    data: str | None = None
    """pydoc, text:PATH, bin:PATH, … (`jaxmodels data list`); by default the run's training data.
    Required for a model without its run."""
    valid_fraction: float | None = None
    """Fraction of the text, from its end, to measure on; 1 for all. By default as in training, or
    0.05 without a run."""
    batch: int = 32
    """Sequences or images in a batch. The results do not depend on it."""
    max_batches: int | None = None
    """Measure on at most this many full batches, evenly spaced; by default on all windows."""
    max_images: int | None = None
    """Measure on at most this many held-out images, the first ones; retrieval is among these."""
    tasks: tuple[Path, ...] = ()
    """Instead of measuring on --data: answer multiple choice by likelihood. Files of JSON lines,
    {"context": …, "choices": […], "answer": 0}; lines {"text": …} are measured by perplexity."""
    image: tuple[Path, ...] = ()
    """With --caption: instead of measuring, print how similar these image files are to texts."""
    caption: tuple[str, ...] = ()
    """The texts to compare with each --image."""
    caption_metrics: bool = False
    """Also caption the held-out images, and compare with the captions that people wrote: BLEU-4,
    ROUGE-L and CIDEr, as COCO's code computes them. Takes much longer."""
    table: Path | None = None
    """Also write the results of a vision-language model to this file, as a Markdown table that
    `push --table` puts into the model card."""
    vocab: Path | None = None
    """characters.json, tokenizer.json or a JSON list of the characters in the order of their ids,
    for a checkpoint without a vocabulary."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Config values that the checkpoint lacks, such as heads=4."""
    weights: Literal["ema", "raw"] | None = None
    """For a run trained with --ema-decay: ema, the averaged weights (the default), or raw, the
    trained ones."""
    json: bool = False
    """Print one JSON object on standard output."""

    def __post_init__(self) -> None:
        within("--batch", self.batch, 1)
        within("--max-batches", self.max_batches, 1)
        within("--valid-fraction", self.valid_fraction, 0, 1)
        within("--max-images", self.max_images, 1)
        if bool(self.image) != bool(self.caption):
            raise Problem("--image and --caption go together", exit_code=USAGE)


def main(argv: list[str]) -> int:
    """Runs the command."""
    argv = merge_repeated(argv, "--set")
    refuse_repeated(argv, "--data", "measure on one at a time, or on a mixture: --data mix:3*A,1*B")
    for option in ("--image", "--caption", "--tasks"):
        argv = merge_repeated(argv, option, many=True)
    options = parse(Eval, argv, "eval")
    from jaxmodels.commands.open import open_model
    from jaxmodels.runtime import platform
    from jaxmodels.runtime.batches import takes_images

    platform.prepare()
    if options.table is not None:
        refuse_existing(options.table)
    model, tokenizer = open_model(options.path, options.vocab, options.set, options.weights)
    if options.tasks:
        return _tasks(options, model, tokenizer)
    if takes_images(model.config):
        if options.image:
            return _similarities(options, model, tokenizer)
    elif options.image or options.max_images or options.caption_metrics or options.table:
        raise Problem(
            "this model takes no images",
            where=str(options.path),
            fix="leave out --image, --caption, --max-images, --caption-metrics and --table",
            exit_code=USAGE,
        )
    with tempfile.TemporaryDirectory(prefix="jaxmodels-eval-") as folder:
        data = _open(options, model, tokenizer, Path(folder))
        result: dict[str, Any] = {}
        shown: list[str] = []
        if (images := getattr(data, "captioned", data if _has_images(data) else None)) is not None:
            found, lines = _images(options, model, images)
            result, shown = result | found, [*shown, *lines]
        if (text := getattr(data, "text", None if _has_images(data) else data)) is not None:
            found, lines = _text(options, model, tokenizer, text)
            result, shown = result | found, [*lines, *shown]
    emit(result) if options.json else print(*shown, sep="\n")
    return 0


def _tasks(options: Eval, model: Any, tokenizer: Any) -> int:
    from jaxmodels.commands.eval_tasks import lines, measure, read_tasks
    from jaxmodels.runtime.likelihood import Scorer

    if options.data or options.image:
        raise Problem("--tasks and --data or --image do not go together", exit_code=USAGE)
    tasks = {str(file): read_tasks(file) for file in options.tasks}
    scorer = Scorer(model, tokenizer, options.batch)
    found = {name: measure(scorer, held) for name, held in tasks.items()}
    if options.json:
        emit({"tasks": found})
    else:
        print(*(line for name, each in found.items() for line in lines(name, each)), sep="\n")
    return 0


def _has_images(data: Any) -> bool:
    return hasattr(data, "valid_images")


def _similarities(options: Eval, model: Any, tokenizer: Any) -> int:
    from jaxmodels.commands import eval_images

    result = eval_images.compare(model, tokenizer, options.image, options.caption)
    shown = [f"{r['similarity']:+.4f}  {r['image']}  {r['caption']}" for r in _rows(result)]
    emit(result) if options.json else print(*shown, sep="\n")
    return 0


def _images(options: Eval, model: Any, data: Any) -> tuple[dict[str, Any], list[str]]:
    """The result for images with captions, and lines that show it."""
    import jaxmodels
    from jaxmodels.commands import eval_images

    package = jaxmodels.package_of(model)
    if options.caption_metrics:
        eval_images.refuse_no_captions(model, options.path)
    result = eval_images.measure(package, model, data, options.max_images, options.max_batches)
    if options.caption_metrics:
        result |= eval_images.described(model, data, options.max_images)
    _refuse_no_number(options, result["loss"])
    if options.table is not None:
        write_text(options.table, eval_images.table(result, data.spec))
    return result, eval_images.lines(result)


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows by image, the most similar caption first."""
    rows: list[dict[str, Any]] = result["similarities"]
    return sorted(rows, key=lambda row: (row["image"], -row["similarity"]))


def _text(options: Eval, model: Any, tokenizer: Any, data: Any) -> tuple[dict[str, Any], list[str]]:
    """The result for text, and lines that show it: of a mixture also those of each source."""
    import jaxmodels
    from jaxmodels.runtime.evaluate import evaluate, loss_function, report
    from jaxmodels.runtime.paths import split

    batches = _batches(options, data)
    graphdef, params, model_state = split(model)
    package = jaxmodels.package_of(model)
    loss = evaluate(loss_function(package, graphdef), params, model_state, batches)
    assert loss is not None
    _refuse_no_number(options, loss["loss"])
    parts = getattr(batches, "parts", ())
    if len(parts) < 2:
        result = report(loss["loss"], *_measured(package, model, batches, tokenizer))
        return result, [_text_line(result)]
    sources: dict[str, Any] = {}
    tokens, per_token = 0, 0.0  # characters a token, by share as the loss
    for name, share, part in parts:
        count, characters = _measured(package, model, part, tokenizer)
        sources[name] = {"share": share} | report(loss[f"loss/{name}"], count, characters)
        tokens += count
        per_token += share * (characters or 0) / count
    result = report(loss["loss"], tokens, tokens * per_token or None)
    lines = [f"{name}: {_text_line(one)}" for name, one in sources.items()]
    return result | {"sources": sources}, [_text_line(result), *lines]


def _text_line(result: dict[str, Any]) -> str:
    per_character = result.get("bits_per_character")
    return (
        f"loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_token']:.4f} bits per token"
        + (f" and {per_character:.4f} per character" if per_character else "")
        + f", over {result['tokens']:,} tokens"
    )


def _refuse_no_number(options: Eval, loss: float) -> None:
    """Raises a Problem (verification failed) if the loss is not finite, which JSON cannot write."""
    if not isfinite(loss):
        raise Problem(
            f"the loss is not finite: {loss}",
            where=str(options.path),
            why="parameters or activations are not finite",
            fix="use an earlier checkpoint; `jaxmodels inspect PATH --tensors` shows what is not "
            "finite",
            exit_code=UNVERIFIED,
        )


def _measured(
    package: Architecture, model: Any, batches: Any, tokenizer: Any
) -> tuple[int, int | None]:
    """The number of targets, and of characters that they decode to (None without a tokeniser).

    A special token stands for one character that is not in the vocabulary.
    """
    special = tokenizer.special_ids if tokenizer else ()
    excess = {i: len(tokenizer.decode([i])) - 1 for i in special}
    tokens = characters = 0
    cut: list[int] = []
    for batch in batches:
        targets = package.targets(model, batch["tokens"]).reshape(-1).tolist()
        tokens += len(targets)
        if tokenizer is not None:
            cut += targets
            characters -= sum(map(excess.get, targets, repeat(0)))
            text = tokenizer.decode(cut)
            if not text.endswith("\ufffd"):  # otherwise the border may split a character
                characters, cut = characters + len(text), []
    if tokenizer is None:
        return tokens, None
    return tokens, characters + len(tokenizer.decode(cut))


def _batches(options: Eval, data: Any) -> Any:
    batches = data.valid(options.max_batches)
    if next(iter(batches), None) is None:
        raise Problem(
            "nothing is held out to measure on",
            where=data.spec,
            fix="give --valid-fraction, for example 0.1, or 1 for the whole text",
            exit_code=USAGE,
        )
    return batches


def _open(options: Eval, model: Any, tokenizer: Any, folder: Path) -> Any:
    """The data to measure on, of the model's kind and vocabulary."""
    import jaxmodels
    from data_pipelines.pipelines import open_data
    from jaxmodels.commands.run_data import image_sizes, refuse_other_kind

    recipe = _recipe(options.path)
    spec = options.data or recipe.get("data")
    if spec is None:
        raise Problem(
            "--data is missing",
            where=str(options.path),
            why="this is a model without its run, so its training data is unknown",
            fix="give --data, for example --data text:PATH",
            exit_code=USAGE,
        )
    refuse_other_kind(spec, model.config, jaxmodels.package_of(model).name)
    fraction = options.valid_fraction
    if fraction is None:
        fraction = recipe.get("valid_fraction", 0.05)
    data = open_data(
        spec,
        folder=folder / "data",
        context=model.config.context,
        batch=options.batch,
        valid_fraction=fraction,
        tokenizer=tokenizer,
        segments=recipe.get("segments", False),
        **image_sizes(model.config),
    )
    for note in data.notes:
        say(note)
    used = vocab_used(model.config)
    if data.vocab_size and data.vocab_size != used:
        raise Problem(
            f"the data has a vocabulary of {data.vocab_size}, the model of {used}",
            fix="give data prepared with the model's vocabulary"
            + ("" if tokenizer else ", or the vocabulary with --vocab FILE"),
            exit_code=MISMATCH,
        )
    return data


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe of the run that PATH is or is a checkpoint of; empty if there is none."""
    from jaxmodels.runtime.settings import read_file

    path = path.absolute()
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    file = run / "config.json"  # a model directory has one too, without a recipe
    recipe: dict[str, Any] = read_file(file).get("recipe", {}) if file.is_file() else {}
    return recipe
