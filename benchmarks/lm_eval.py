"""lm-evaluation-harness on any checkpoint of text: `python -m benchmarks.lm_eval PATH --tasks …`.

Needs `pip install 'jaxmodels[lm-eval]'`; the arithmetic, `Scorer`, does not. Tasks fetch their data
from the Hugging Face hub, those of `--include-path` may read files.

Log-likelihoods are those of the model's softmax in float32. A text without a context follows the
end-of-text token or, for characters, the blank line that separates documents in training. A text
longer than the model's context is scored in windows, every token once, after as many as fit.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional, arg

from benchmarks.harness import RESULTS, Absent, Run, positive, save
from jaxmodels.__main__ import guarded
from jaxmodels.architecture import ConfigView
from jaxmodels.cli import parse, say
from jaxmodels.errors import DONE, USAGE, Problem
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.batches import sees
from jaxmodels.runtime.generate import before, generate
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.platform import prepare
from jaxmodels.sizes import vocab_used

_MAX_TOKENS = 256  # of an answer, if a task sets no limit


@dataclass(frozen=True)
class Evaluate:
    """Run tasks of lm-evaluation-harness on a checkpoint."""

    path: Positional[Path]
    """Run directory, checkpoint or model directory of a language model."""
    tasks: tuple[str, ...]
    """Names of tasks."""
    limit: int | None = None
    """Examples of each task; all by default."""
    include_path: Path | None = None
    """A folder of additional tasks (YAML)."""
    batch: int = 8
    """Windows scored at once."""
    vocab: Path | None = None
    """characters.json or tokenizer.json, for a checkpoint that came without one."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Settings that the checkpoint lacks, such as heads=4."""
    out: Path = RESULTS
    """Folder whose lm_eval.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "limit", "batch")


def main(argv: list[str]) -> int:
    """Runs the tasks, adds a record for each metric to the results and prints them; returns 0.

    Raises:
        Absent: lm-eval is not installed.
        Problem: (usage) the model does not predict each token of a text.
    """
    options = parse(Evaluate, argv, "bench lm_eval")
    if find_spec("lm_eval") is None:
        raise Absent("lm-eval is not installed", "pip install 'jaxmodels[lm-eval]'")
    prepare()
    import lm_eval
    from lm_eval.tasks import TaskManager

    from jaxmodels.commands.open import open_model

    model, tokenizer = open_model(options.path, options.vocab, options.set)
    run = Run("lm_eval", {"limit": options.limit, "lm_eval": lm_eval.__version__})
    manager = TaskManager(include_path=options.include_path and str(options.include_path))
    found = lm_eval.simple_evaluate(
        model=adapter(Scorer(model, tokenizer, options.batch)),
        tasks=list(options.tasks),
        limit=options.limit,
        task_manager=manager,
    )
    records = [
        run.record(task, str(options.path), metric, float(value))
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in metric
    ]
    say(f"added to {save(records, options.out)}")
    for record in records:
        print(f"{record['case']:<24} {record['unit']:<24} {record['median']:.4f}")
    return DONE


class Window(NamedTuple):
    """A part of a text's tokens: those from `begin` on are read, those in [first, end) scored."""

    begin: int
    first: int
    end: int


def windows(length: int, start: int, context: int) -> Iterator[Window]:
    """Windows that score each token from `start` ≥ 1 on once, after as many as fit."""
    while start < length:
        end = min(start + context, length)
        yield Window(max(0, end - 1 - context), start, end)
        start = end


class Scorer:
    """The requests of lm-evaluation-harness, answered by a language model.

    Args:
        model: a module whose call gives logits [b, t, v] for tokens [b, t], or wigip's with the
            dense objective.
        tokenizer: as of `open_model`.
        batch: windows scored at once.

    Raises:
        Problem: (usage) the model predicts only the last token of a text, or there is no
            vocabulary.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = 8):
        objective = ConfigView(model.config).objective
        if sees(model.config) or objective == "next_char":
            raise Problem(
                "this model does not predict each token of a text",
                fix="evaluate a language model, or wigip with the dense objective",
                exit_code=USAGE,
            )
        if tokenizer is None:
            raise Problem("the model has no vocabulary", fix="give --vocab FILE", exit_code=USAGE)
        self.model, self.tokenizer, self.batch = model, tokenizer, batch
        graphdef, self._params, self._rest = split(model)

        ids = np.arange(model.config.vocab)  # those that `generate` never draws
        never = np.isin(ids, tokenizer.special_ids)
        never |= ids >= vocab_used(model.config)

        def score(params: Any, rest: Any, tokens: Any) -> tuple[Any, Any]:
            model = graphdef.merge(params, rest)
            inputs, wanted = tokens[:, :-1], tokens[:, 1:]
            dense = objective == "dense"
            logits = model.logits(model.dense(inputs)) if dense else model(inputs)[0]
            every = jax.nn.log_softmax(logits.astype(jnp.float32))
            chosen = jnp.take_along_axis(every, wanted[..., None], axis=-1)[..., 0]
            likeliest = jnp.where(never, -jnp.inf, logits).argmax(-1)
            return chosen, likeliest == wanted

        self._score = jax.jit(score)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): its log-likelihood, and whether it is greedy."""
        texts = []
        for context, continuation in pairs:
            space = len(context) - len(context.rstrip())
            if space:  # white space before a word belongs to its token
                context, continuation = context[:-space], context[-space:] + continuation
            tokens = self.tokenizer.encode(context + continuation)
            known = len(self.tokenizer.encode(context))
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
            text = tokenizer.decode(before(end, drawn))
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
        context = int(self.model.config.context)
        parts = [
            (number, tokens[window.begin : window.end], window.end - window.first)
            for number, (tokens, start) in enumerate(texts)
            for window in windows(len(tokens), start, context)
        ]
        parts.sort(key=lambda part: len(part[1]))  # for little padding
        totals, greedy = np.zeros(len(texts)), np.ones(len(texts), bool)
        for i in range(0, len(parts), self.batch):
            group = parts[i : i + self.batch]
            longest = len(group[-1][1]) - 1
            room = min(max(1 << (longest - 1).bit_length(), 16), context)
            tokens = np.zeros((self.batch, room + 1), np.int32)
            for row, (_, part, _) in enumerate(group):
                tokens[row, : len(part)] = part
            chosen, same = map(np.asarray, self._score(self._params, self._rest, tokens))
            for row, (number, part, count) in enumerate(group):
                scored = slice(len(part) - 1 - count, len(part) - 1)
                totals[number] += chosen[row, scored].sum(dtype=np.float64)
                greedy[number] &= bool(same[row, scored].all())
        return [(float(total), bool(all_)) for total, all_ in zip(totals, greedy, strict=True)]


def adapter(scorer: Scorer) -> Any:
    """The scorer as lm-evaluation-harness's class `LM`."""
    from lm_eval.api.model import LM

    class Adapter(LM):
        """Passes requests to the scorer."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            """See `Scorer.loglikelihood`."""
            return scorer.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            """See `Scorer.rolling`."""
            return scorer.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            """See `Scorer.generate`."""
            return [_generated(scorer, *request.args) for request in requests]

    return Adapter()


def _generated(scorer: Scorer, context: str, request: dict[str, Any]) -> str:
    until = request.get("until") or []
    stops = [until] if isinstance(until, str) else until
    limit = int(request.get("max_gen_toks") or request.get("max_tokens") or _MAX_TOKENS)
    draws = request.get("do_sample", False)
    return scorer.generate(context, stops, limit, request.get("temperature") if draws else None)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
