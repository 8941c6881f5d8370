"""lm-evaluation-harness on any checkpoint of text: `python -m benchmarks.lm_eval PATH --tasks …`.

Needs `pip install 'jaxmodels[lm-eval]'`; `jaxmodels eval PATH --tasks FILE.jsonl`, with the same
arithmetic (`runtime/likelihood.py`), does not. Tasks fetch their data from the Hugging Face hub,
those of `--include-path` may read files.
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from benchmarks.harness import RESULTS, Absent, Run, positive, save
from jaxmodels.__main__ import guarded
from jaxmodels.cli import parse, say
from jaxmodels.errors import DONE
from jaxmodels.runtime.likelihood import Scorer
from jaxmodels.runtime.platform import prepare

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
        Problem: (usage) the model reads images, or has no vocabulary.
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
