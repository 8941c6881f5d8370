"""`jaxmodels eval`: loss, perplexity and bits per character on held-out text; or retrieval, or
answers to questions."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from jaxmodels.architecture import Architecture
from jaxmodels.cli import emit, merge_repeated, parse, refuse_repeated
from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.files import refuse_existing, write_text


@dataclass(frozen=True)
class Eval:
    """Measure the model in PATH on the held-out end of a text, on held-out images, on questions
    about images, or on tasks."""

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
    questions: str | None = None
    """Instead of measuring on --data: answer questions about images, and compare with what people
    answered. A JSON file of questions in VQAv2's layout, or `shapes`, the drawn scenes."""
    annotations: Path | None = None
    """With --questions: the JSON file of people's answers; by default the one beside the questions
    that VQAv2's naming pairs with it."""
    image_folder: Path | None = None
    """With --questions: the folder of the images; by default that of the questions."""
    predictions: Path | None = None
    """With --questions: also write the model's answers to this file, in the layout of VQA's
    results. This works without known answers too; without this option they are then printed."""
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
        self._refuse_pairs()
        not_of_tasks = ("data", "image", "valid_fraction", "max_batches", "max_images")
        for name in (*not_of_tasks, "caption_metrics", "table") if self.tasks else ():
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise Problem(f"--tasks and {flag} do not go together", exit_code=USAGE)

    def _refuse_pairs(self) -> None:
        """Refuses options of --questions without it, and what is measured in another way."""
        of_questions = ("annotations", "image_folder", "predictions")
        others = ("data", "tasks", "image", "caption_metrics", "valid_fraction")
        for name in others if self.questions else of_questions:
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                end = "do not go together" if self.questions else "is missing"
                what = f"{flag} and --questions {end}" if self.questions else f"--questions {end}"
                why = "" if self.questions else f"{flag} says how questions are answered"
                raise Problem(what, why=why, exit_code=USAGE)


def main(argv: list[str]) -> int:
    """Runs the command."""
    argv = merge_repeated(argv, "--set")
    refuse_repeated(argv, "--questions", "ask those of one file at a time")
    refuse_repeated(argv, "--data", "measure on one at a time, or on a mixture: --data mix:3*A,1*B")
    for option in ("--image", "--caption", "--tasks"):
        argv = merge_repeated(argv, option, many=True)
    options = parse(Eval, argv, "eval")
    from jaxmodels.commands import eval_questions
    from jaxmodels.commands.eval_data import open_held_out
    from jaxmodels.commands.eval_text import measure_text
    from jaxmodels.commands.open import open_model
    from jaxmodels.runtime import platform
    from jaxmodels.runtime.batches import takes_images

    platform.prepare()
    for file in (options.table, options.predictions):
        if file is not None:
            refuse_existing(file)
    model, tokenizer = open_model(options.path, options.vocab, options.set, options.weights)
    if options.tasks:
        return _tasks(options, model, tokenizer)
    asking = None
    if options.questions is not None:
        eval_questions.refuse_no_answers(model, options.path)
        asking = eval_questions.spec_of(
            options.questions, options.image_folder, options.annotations
        )
    elif takes_images(model.config):
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
        data = open_held_out(options, model, tokenizer, Path(folder), asking)
        result: dict[str, Any] = {}
        shown: list[str] = []
        if (images := getattr(data, "captioned", data if _has_images(data) else None)) is not None:
            found, lines = _images(options, model, images)
            result, shown = result | found, [*shown, *lines]
        if (text := getattr(data, "text", None if _has_images(data) else data)) is not None:
            found, lines = measure_text(options, model, tokenizer, text)
            result, shown = result | found, [*lines, *shown]
    emit(result) if options.json else print(*shown, sep="\n")
    return 0


def _tasks(options: Eval, model: Any, tokenizer: Any) -> int:
    from jaxmodels.commands.eval_tasks import lines, measure, read_tasks
    from jaxmodels.runtime.likelihood import Scorer

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
    """The result for images with captions or questions, and lines that show it."""
    import jaxmodels
    from jaxmodels.commands import eval_images
    from jaxmodels.commands.eval_text import refuse_no_number

    package = jaxmodels.package_of(model)
    if hasattr(data, "asked"):
        return _questions(options, package, model, data)
    if options.caption_metrics:
        eval_images.refuse_no_captions(model, options.path)
    limit, batches = options.max_images, options.max_batches
    result = eval_images.losses(package, model, data, limit, batches)
    result |= eval_images.retrieval(model, data, limit)
    if options.caption_metrics:
        result |= eval_images.described(model, data, options.max_images)
    refuse_no_number(options.path, result["loss"])
    if options.table is not None:
        write_text(options.table, eval_images.table(result, data.spec))
    return result, eval_images.lines(result)


def _questions(
    options: Eval, package: Architecture, model: Any, data: Any
) -> tuple[dict[str, Any], list[str]]:
    """The result for questions about images, and lines that show it."""
    from jaxmodels.commands import eval_images, eval_questions
    from jaxmodels.commands.eval_text import refuse_no_number

    if options.caption_metrics:
        raise Problem(
            "--caption-metrics compares captions, and the data is questions",
            where=data.spec,
            fix="leave it out, or give --data with captions",
            exit_code=USAGE,
        )
    limit, result = options.max_images, dict[str, Any]()
    if not data.unanswered:
        result = eval_images.losses(package, model, data, limit, options.max_batches)
        refuse_no_number(options.path, result["loss"])
    elif options.table is not None:
        eval_questions.refuse_no_table(data.spec)
    result |= eval_questions.measure(model, data, limit, options.batch, options.predictions)
    if options.table is not None:
        write_text(options.table, eval_questions.table(result, options.questions or data.spec))
    return result, list(eval_questions.lines(result))


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows by image, the most similar caption first."""
    rows: list[dict[str, Any]] = result["similarities"]
    return sorted(rows, key=lambda row: (row["image"], -row["similarity"]))
