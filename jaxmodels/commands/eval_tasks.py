"""`jaxmodels eval PATH --tasks FILE.jsonl`: multiple choice by likelihood, and perplexity of texts.

A line of a file is a question with choices, or a text:

    {"context": "The sky is", "choices": ["blue", "loud"], "answer": 0}
    {"text": "A text whose perplexity is measured."}

The names of other benchmarks' files are understood (`_CONTEXT`, `_CHOICES`, `_ANSWER`). A choice
follows its context after a space, unless there is white space already. `acc` is the share of
questions whose answer has the highest log-likelihood, `acc_norm` the same by log-likelihood divided
by the bytes of the choice, as in lm-evaluation-harness.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from data_pipelines.ids import without_surrogates
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.reading import read_limited

_CONTEXT = ("context", "question", "query", "ctx", "prompt", "goal", "sentence")
_CHOICES = ("choices", "endings", "options")
_ANSWER = ("answer", "gold", "label", "answerKey", "target")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST = 10**9  # bytes of a file


@dataclass(frozen=True)
class Question:
    """Multiple choice."""

    line: int
    """In its file, from 1 on."""
    context: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        return [(self.context, self._joint(choice) + choice) for choice in self.choices]

    def _joint(self, choice: str) -> str:
        spaced = not self.context or self.context[-1].isspace() or choice[:1].isspace()
        return "" if spaced else " "


@dataclass(frozen=True)
class Tasks:
    """The content of a file."""

    questions: tuple[Question, ...]
    texts: tuple[str, ...]


def read_tasks(file: Path) -> Tasks:
    """The questions and texts in a file of JSON lines.

    Raises:
        Problem: (corrupt) it cannot be read, is empty, or a line is neither; names the line.
    """
    try:
        content = read_limited(file, _MOST).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise Problem(
            "the tasks cannot be read", where=str(file), why=str(error), exit_code=CORRUPT
        ) from None
    questions, texts = [], []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse(file, number, f"it is not JSON: {str(error)[:200]}")
        if not isinstance(row, dict):
            _refuse(file, number, "it is not an object")
        row = _plain(row)
        if isinstance(row.get("text"), str) and _first(row, _CHOICES) is None:
            if not row["text"]:
                _refuse(file, number, "its text is empty")
            texts.append(row["text"])
        else:
            questions.append(_question(row, file, number))
    if not questions and not texts:
        raise Problem(
            "there are no tasks in the file", where=str(file), fix=_FORM, exit_code=CORRUPT
        )
    return Tasks(tuple(questions), tuple(texts))


_FORM = (
    'write lines like {"context": "The sky is", "choices": ["blue", "loud"], "answer": 0}, '
    'or {"text": "…"} for perplexity'
)


def _question(row: dict[str, Any], file: Path, number: int) -> Question:
    choices: Any = _first(row, _CHOICES)
    labels: Any = None
    if isinstance(choices, dict):  # as in ARC: {"text": […], "label": ["A", …]}
        choices, labels = choices.get("text"), choices.get("label")
    context = _first(row, _CONTEXT)
    if choices is None:
        _refuse(file, number, "it has no choices")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        _refuse(file, number, "its choices are not a list of texts")
    if len(choices) < 2:
        _refuse(file, number, f"it has {len(choices)} choices; a question needs two or more")
    if not isinstance(context, str):
        _refuse(file, number, "it has no context")
    if (answer := _first(row, _ANSWER)) is None:
        _refuse(file, number, "it has no answer")
    if (index := _index(answer, choices, labels)) is None:
        _refuse(file, number, f"its answer {str(answer)[:80]!r} is none of its choices")
    return Question(number, context, tuple(choices), index)


def _index(answer: Any, choices: list[str], labels: Any) -> int | None:
    """Which choice an answer names: its index, its label or letter, or its text."""
    if isinstance(answer, bool):
        return None
    if isinstance(labels, list) and answer in labels[: len(choices)]:
        return labels.index(answer)
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        if len(answer) == 1 and answer in _LETTERS[: len(choices)]:
            return _LETTERS.index(answer)
        answer = int(answer) if answer.isascii() and answer.isdecimal() else None
    return answer if isinstance(answer, int) and 0 <= answer < len(choices) else None


def _plain(value: Any) -> Any:
    """A JSON value whose texts are valid Unicode."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _refuse(file: Path, number: int, why: str) -> NoReturn:
    raise Problem(
        f"line {number} is neither a question nor a text",
        where=str(file),
        why=why,
        fix=_FORM,
        exit_code=CORRUPT,
    )


def measure(scorer: Any, tasks: Tasks) -> dict[str, Any]:
    """The results of a file, JSON-able.

    Args:
        scorer: a `runtime.likelihood.Scorer`.
        tasks: by `read_tasks`.

    Returns:
        of questions `questions` (their number), `acc`, `acc_stderr`, `acc_norm`, and `answers`: for
        each its line, what was chosen, what is right, and the log-likelihood of each choice in
        nats; of texts `texts`, `word_perplexity`, `byte_perplexity` and `bits_per_byte`.
    """
    return {**_of_questions(scorer, tasks.questions), **_of_texts(scorer, tasks.texts)}


def _of_questions(scorer: Any, questions: tuple[Question, ...]) -> dict[str, Any]:
    if not questions:
        return {}
    scores = iter(scorer.loglikelihood([pair for q in questions for pair in q.pairs]))
    answers = []
    normed = 0
    for question in questions:
        found = [next(scores)[0] for _ in question.choices]
        sizes = [len(choice.encode()) for choice in question.choices]
        normed += int(np.argmax(np.divide(found, sizes))) == question.answer
        answers.append(
            {
                "line": question.line,
                "chosen": int(np.argmax(found)),
                "answer": question.answer,
                "loglikelihoods": found,
            }
        )
    count = len(questions)
    acc = sum(row["chosen"] == row["answer"] for row in answers) / count
    return {
        "questions": count,
        "acc": acc,
        "acc_stderr": sqrt(acc * (1 - acc) / (count - 1)) if count > 1 else None,
        "acc_norm": normed / count,
        "answers": answers,
    }


def _of_texts(scorer: Any, texts: tuple[str, ...]) -> dict[str, Any]:
    total = sum(scorer.rolling(texts)) if texts else 0.0
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    if not size:
        return {}
    return {
        "texts": len(texts),
        "word_perplexity": exp(min(-total / max(words, 1), 700.0)),
        "byte_perplexity": exp(min(-total / size, 700.0)),
        "bits_per_byte": -total / size / log(2),
    }


def lines(name: str, found: dict[str, Any]) -> Iterator[str]:
    """The results as text."""
    if "acc" in found:
        spread = found["acc_stderr"]
        error = f" ± {spread:.4f}" if spread is not None else ""
        yield (
            f"{name}: {found['acc']:.4f}{error} of {found['questions']:,} "
            f"{'question' if found['questions'] == 1 else 'questions'} right, "
            f"{found['acc_norm']:.4f} by likelihood per byte"
        )
    if "texts" in found:
        yield (
            f"{name}: {found['bits_per_byte']:.4f} bits per byte, perplexity "
            f"{found['word_perplexity']:.3f} per word, over {found['texts']:,} "
            + ("text" if found["texts"] == 1 else "texts")
        )
