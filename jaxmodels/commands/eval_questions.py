"""`jaxmodels eval --questions`: how often a model answers questions about images as people do."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmodels.cli import say
from jaxmodels.errors import USAGE, Problem
from jaxmodels.files import write_text

_MOST_TYPES = 12  # more are not printed; VQA has 65 types of questions


def spec_of(questions: str, images: Path | None, answers: Path | None) -> str:
    """The data spec of --questions, --image-folder and --annotations.

    Raises:
        Problem: (usage) the drawn scenes are asked about, and files are given.
    """
    kind = questions.partition(":")[0]
    if kind == "shapes":
        if images or answers:
            raise Problem(
                "the drawn scenes bring their images and answers",
                where=f"--questions {questions}",
                fix="leave out --image-folder and --annotations",
                exit_code=USAGE,
            )
        return f"questions:{questions}"
    file = Path(questions).expanduser().absolute()
    folder = (images or file.parent).expanduser().absolute()
    parts = [str(folder), str(file)] + ([str(answers.expanduser().absolute())] if answers else [])
    return f"questions:{'#'.join(parts)}"


def refuse_no_answers(model: Any, path: Path | str) -> None:
    """Raises Problem (usage) if a model, or a class of models, cannot answer questions."""
    import jaxmodels
    from jaxmodels.runtime.answers import can_caption
    from jaxmodels.runtime.batches import takes_images

    package = jaxmodels.package_of(model)
    if can_caption(package.Model):
        return
    config = getattr(model, "config", model)
    why = "it takes no images"
    if takes_images(config):
        why = "it does not write texts about images"
    raise Problem(
        f"{package.name} cannot answer questions about images",
        where=str(path),
        why=why,
        fix="use a bitgen",
        exit_code=USAGE,
    )


def refuse_no_table(spec: str) -> None:
    """Raises Problem (usage): questions without answers give no table."""
    raise Problem(
        "there are no results for --table",
        where=spec,
        why="the answers of people are unknown",
        fix="give them with --annotations",
        exit_code=USAGE,
    )


def measure(
    model: Any, data: Any, limit: int | None, batch: int, predictions: Path | None
) -> dict[str, Any]:
    """The accuracy of a model's answers, JSON-able.

    Args:
        model: one that can answer.
        data: a `QuestionDataset`.
        limit: the most images; None: all held-out ones.
        batch: questions answered at once.
        predictions: where to write the answers, in the layout of VQA's results.

    Returns:
        `questions` and `images`, their numbers; if the answers are known `accuracy` and `chance`
        (of the best constant answer), both in [0, 1], `by_type`, and `by_answer_type` where
        answers have types: name → the same three. Without answers and `predictions` they are in
        `answers`.
    """
    asked = data.asked(limit)
    written = _written(model, data, asked, batch)
    rows = [
        {"question_id": question.id, "answer": text}
        for (_, question), text in zip(asked, written, strict=True)
    ]
    if predictions is not None:
        write_text(predictions, json.dumps(rows) + "\n")
        say(f"{len(rows):,} answers written to {predictions}")
    images = {"images": len({image for image, _ in asked})}
    questions = [question for _, question in asked]
    if not all(question.answers for question in questions):
        more = {} if predictions else {"answers": rows}
        return {"questions": len(rows), **images, **more}
    by_type = _by([question.kind for question in questions], questions, written)
    of_answers = _by([question.answer_kind for question in questions], questions, written)
    overall = _score(questions, written)
    return (
        overall
        | images
        | {
            name: groups
            for name, groups in (("by_type", by_type), ("by_answer_type", of_answers))
            if groups
        }
    )


def _written(model: Any, data: Any, asked: Sequence[tuple[int, Any]], batch: int) -> list[str]:
    """The answer to each question; nothing, with a note, where it does not fit the context."""
    import numpy as np

    from data_pipelines.captions.question_dataset import prompt_of
    from jaxmodels.runtime.answers import answer

    of_image = np.asarray([image for image, _ in asked])
    prompts = [prompt_of(question.text) for _, question in asked]
    found = answer(model, data.tokenizer, prompts, lambda rows: data.pixels(of_image[rows]), batch)
    if lost := sum(text is None for text in found):
        say(
            f"{lost:,} questions fill the model's context of {model.config.context} tokens and "
            "are not answered"
        )
    return [text or "" for text in found]


def _by(
    kinds: Sequence[str], questions: Sequence[Any], written: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The score of each kind of questions, by name; empty if they have none."""
    groups: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(i)
    if set(groups) <= {""}:
        return {}
    return {
        kind: _score([questions[i] for i in rows], [written[i] for i in rows])
        for kind, rows in sorted(groups.items())
    }


def _score(questions: Sequence[Any], written: Sequence[str]) -> dict[str, Any]:
    from jaxmodels.runtime.vqa import accuracy, chance

    right = [
        accuracy(text, question.answers) for question, text in zip(questions, written, strict=True)
    ]
    return {
        "questions": len(right),
        "accuracy": sum(right) / len(right),
        "chance": chance([question.answers for question in questions]),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as lines of text."""
    if "loss" in result:
        yield f"loss {result['loss']:.4f} (perplexity {result['perplexity']:.3f} per token)"
    head = f"{result['questions']:,} questions about {result['images']:,} images"
    if "accuracy" not in result:
        yield f"{head}: their answers are unknown, so no accuracy"
        for row in result.get("answers", ()):
            yield f"{row['question_id']}\t{row['answer']}"
        return
    yield f"{head:<42} {'accuracy':>9} {'constant':>9} {'questions':>10}"
    for name, found in _table_rows(result):
        yield (
            f"{name:<42} {found['accuracy']:>9.1%} {found['chance']:>9.1%} "
            f"{found['questions']:>10,}"
        )


def table(result: dict[str, Any], data: str) -> str:
    """The result, with its accuracy, as a Markdown table; `data` names the questions."""
    body = "\n".join(
        f"| {name} | {found['accuracy']:.1%} | {found['chance']:.1%} | {found['questions']:,} |"
        for name, found in _table_rows(result)
    )
    return (
        f"Visual questions of `{data}`: {result['questions']:,} questions about "
        f"{result['images']:,} images. Constant: the most frequent answer to all.\n\n"
        f"| Questions | Accuracy | Constant | Number |\n|---|---|---|---|\n{body}\n"
    )


def _table_rows(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "all", result
    for name in ("by_type", "by_answer_type"):
        found = result.get(name, {})
        if 1 < len(found) <= _MOST_TYPES:
            yield from found.items()
