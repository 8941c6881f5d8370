"""Log-likelihoods of texts, by any language model: for tasks, and for lm-evaluation-harness.

They are those of the model's softmax in float32. A text without a context follows the end-of-text
token or, for characters, the blank line that separates documents in training. A text longer than
the model's context is scored in windows, every token once, after as many as fit.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.architecture import ConfigView
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.batches import takes_text
from jaxmodels.runtime.generate import generate, truncate_at
from jaxmodels.runtime.paths import Arrays, GraphDef, split


class ScoredWindow(NamedTuple):
    """A part of a text's tokens: those from `begin` on are read, those in [first, end) scored."""

    begin: int
    first: int
    end: int


def windows(length: int, start: int, context: int) -> Iterator[ScoredWindow]:
    """Windows that score each token from `start` ≥ 1 on once, after as many as fit."""
    while start < length:
        end = min(start + context, length)
        yield ScoredWindow(max(0, end - 1 - context), start, end)
        start = end


class _Part(NamedTuple):
    """A window of a text, of which the last `scored` tokens are scored."""

    text: int
    tokens: np.ndarray
    scored: int


class Scorer:
    """Scores texts, and continues them, by a language model.

    Args:
        model: a module whose call gives logits [b, t, v] for tokens [b, t], or a wigip. One that
            predicts only the character after a window takes a window for each character.
        tokenizer: as of `open_model`.
        batch: windows scored at once.

    Raises:
        Problem: (usage) the model reads images, or there is no vocabulary.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = 8):
        view = ConfigView(model.config)
        objective = view.objective
        if not takes_text(model.config):
            raise Problem(
                "this model reads images with its texts",
                fix="score texts by a language model",
                exit_code=USAGE,
            )
        if tokenizer is None:
            raise Problem("the model has no vocabulary", fix="give --vocab FILE", exit_code=USAGE)
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        self._last_only = objective == "next_char"
        graphdef, *arrays = split(model)
        ids = np.arange(model.config.vocab)
        never = np.isin(ids, tokenizer.special_ids)  # as `generate`, which never draws them
        never |= ids >= (view.vocab if view.tokens is None else view.tokens)
        self._score = partial(_score, graphdef, objective, *arrays, never)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): its log-likelihood, and whether it is greedy.

        Where a continuation becomes part of the context's last token, as one unknown character does
        behind another, that token is scored.
        """
        texts = []
        for context, continuation in pairs:
            space = len(context) - len(context.rstrip())
            if space:  # white space before a word belongs to its token
                context, continuation = context[:-space], context[-space:] + continuation
            tokens = self.tokenizer.encode(context + continuation)
            known = len(self.tokenizer.encode(context))
            if continuation:
                known = min(known, max(len(tokens) - 1, 0))
            prefix = self._prefix if known == 0 else np.zeros(0, np.int32)
            texts.append((np.concatenate([prefix, tokens]), len(prefix) + known))
        return self._scored(texts)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each text."""
        prefix = self._prefix
        tokens = [np.concatenate([prefix, self.tokenizer.encode(text)]) for text in texts]
        return [total for total, _ in self._scored([(one, len(prefix)) for one in tokens])]

    def generate(
        self, context: str, until: Sequence[str], max_tokens: int, temperature: float | None
    ) -> str:
        """The generated text, up to the first of `until` or `max_tokens` tokens."""
        tokenizer = self.tokenizer
        prompt = tokenizer.encode(context) if context else self._prefix
        sampling, end = Sampling(temperature or None), tokenizer.end_of_text
        banned, drawn, text = tuple(tokenizer.special_ids), np.zeros(0, np.int32), ""
        for piece in generate(self.model, prompt[None], max_tokens, sampling, 0, banned, end=end):
            drawn = np.concatenate([drawn, piece[0]])
            text = tokenizer.decode(truncate_at(end, drawn))
            if found := [at for stop in until if stop and (at := text.find(stop)) >= 0]:
                return text[: min(found)]
        return text

    @property
    def _prefix(self) -> np.ndarray:
        end = self.tokenizer.end_of_text
        found = self.tokenizer.encode("\n\n") if end is None else [end]
        return np.asarray(found, np.int32)

    def _scored(self, texts: Sequence[tuple[np.ndarray, int]]) -> list[tuple[float, bool]]:
        """For each (tokens, first scored one): sum of log-probabilities, whether all are greedy."""
        parts = [part for number, text in enumerate(texts) for part in self._parts(number, *text)]
        parts.sort(key=lambda part: len(part.tokens))  # for little padding
        totals, greedy = np.zeros(len(texts)), np.ones(len(texts), bool)
        for i in range(0, len(parts), self.batch):
            group = parts[i : i + self.batch]
            chosen, same = self._scores(group)
            for row, part in enumerate(group):
                end = 1 if self._last_only else len(part.tokens) - 1
                scored = slice(end - part.scored, end)
                totals[part.text] += chosen[row, scored].sum(dtype=np.float64)
                greedy[part.text] &= bool(same[row, scored].all())
        return [(float(total), bool(all_)) for total, all_ in zip(totals, greedy, strict=True)]

    def _parts(self, number: int, tokens: np.ndarray, start: int) -> Iterator[_Part]:
        """The windows of a text, whose tokens from `start` on are scored."""
        context = int(self.model.config.context)
        if not self._last_only:
            for window in windows(len(tokens), start, context):
                part = tokens[window.begin : window.end]
                yield _Part(number, part, window.end - window.first)
            return
        padded = np.concatenate([np.zeros(context, np.int32), tokens])  # as `generate` pads
        for at in range(start, len(tokens)):
            yield _Part(number, padded[at : at + context + 1], 1)

    def _scores(self, group: Sequence[_Part]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each token but the first of each window, and whether it is greedy."""
        longest = len(group[-1].tokens) - 1
        room = min(max(1 << (longest - 1).bit_length(), 16), int(self.model.config.context))
        tokens = np.zeros((self.batch, room + 1), np.int32)
        for row, part in enumerate(group):
            tokens[row, : len(part.tokens)] = part.tokens
        chosen, same = self._score(tokens)
        return np.asarray(chosen), np.asarray(same)


@partial(jax.jit, static_argnums=(0, 1))
def _score(
    graphdef: GraphDef,
    objective: str | None,
    params: Arrays,
    rest: Arrays,
    never: Bool[Array, "v"],
    tokens: Int[Array, "b s"],
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    """Log-probability of each token but the first, of next_char of the last alone, and whether it
    is the likeliest of those that may be drawn."""
    model = graphdef.merge(params, rest)
    inputs, wanted = tokens[:, :-1], tokens[:, 1:]
    if objective == "dense":
        logits = model.logits(model.dense(inputs))
    elif objective == "next_char":
        logits, wanted = model(inputs)[0][:, None], wanted[:, -1:]
    else:
        logits = model(inputs)[0]
    every = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(every, wanted[..., None], axis=-1)[..., 0]
    likeliest = jnp.where(never, -jnp.inf, logits).argmax(-1)
    return chosen, likeliest == wanted
