"""Images with questions: batches to learn the answers from, and the questions to be asked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from data_pipelines.captions.caption_dataset import Batch, CaptionDataset
from data_pipelines.captions.source import Question
from data_pipelines.tokenizers import Tokenizer


def prompt_of(question: str) -> str:
    """What a model reads before it writes the answer.

    >>> prompt_of("what colour is it")
    'question: what colour is it answer:'
    """
    return f"question: {' '.join(question.split())} answer:"


def answered(question: Question) -> str:
    """The text that is learned: the prompt and the most frequent answer, the first of several."""
    prompt = prompt_of(question.text)
    if not question.answers:
        return prompt
    answer = Counter(question.answers).most_common(1)[0][0]
    return f"{prompt} {' '.join(answer.split())}"


def prompt_length(question: Question, tokenizer: Tokenizer) -> int:
    """How many tokens of the text that is learned are the prompt."""
    prompt, text = (tokenizer.encode(x) for x in (prompt_of(question.text), answered(question)))
    size = min(len(prompt), len(text))
    differ = np.flatnonzero(prompt[:size] != text[:size])
    return int(differ[0]) if len(differ) else size


@dataclass(frozen=True, eq=False, kw_only=True)
class QuestionDataset(CaptionDataset):
    """Images whose texts are questions with their answers. An image's questions take turns, as
    captions do."""

    questions: tuple[tuple[Question, ...], ...]
    """Those of each image; `texts` are these with their answers."""

    TEXTS: ClassVar[str] = "questions with their answers"

    def pairs(self, indices: np.ndarray, turns: np.ndarray) -> Batch:
        """As for captions, and `scored` int32 [rows, context], 1 for a token of an answer or of
        its end."""
        batch = super().pairs(indices, turns)
        chosen = self.captions.first[indices] + turns % self.captions.counts[indices]
        of_answer = np.arange(self.context) >= self._begins[chosen][:, None]
        return batch | {"scored": batch["mask"] * of_answer.astype(np.int32)}

    def asked(self, limit: int | None = None) -> list[tuple[int, Question]]:
        """The questions about the held-out images, or the first so many of these, each with the
        index of its image."""
        images = self._held_out[:limit].tolist()
        return [(image, question) for image in images for question in self.questions[image]]

    @property
    def unanswered(self) -> int:
        """Questions whose answers are not known."""
        return sum(not question.answers for each in self.questions for question in each)

    @cached_property
    def _begins(self) -> Int[np.ndarray, "n"]:
        every: Sequence[Question] = [question for each in self.questions for question in each]
        return np.asarray([prompt_length(q, self.tokenizer) for q in every], np.int64)
