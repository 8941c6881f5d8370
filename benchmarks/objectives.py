"""wigip's two objectives after equal time: `jaxmodels bench objectives`.

Both start from the same parameters and take turns of a few seconds of training, so that a busy
machine slows both alike; compilation and data are not counted. Bits per character are measured for
both on the same held-out characters, each predicted from the full window before it; and for the
dense one on every held-out character, whose windows are half full on average.
"""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmodels
from benchmarks.harness import RESULTS, Run, positive, save
from data_pipelines.cores import cores
from data_pipelines.pipelines import open_data
from data_pipelines.token_dataset import TokenDataset
from jaxmodels.cli import parse, say
from jaxmodels.layers.losses import cross_entropy
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import training

RUNS = ((),)
QUICK = (("--seconds", "5", "--steps", "50"),)

TURN = 5.0  # seconds
WINDOWS = 4096  # held-out windows whose next character both predict


@dataclass(frozen=True)
class Objectives:
    """Train wigip with both objectives for the same time, and compare."""

    preset: str = "wigip:tiny"
    """ARCH:PRESET."""
    seconds: float = 120.0
    """Seconds of training for each."""
    steps: int = 1000
    """The learning rate is warmed up over a tenth of this, then constant."""
    out: Path = RESULTS
    """Folder whose objectives.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "seconds", "steps")


class Trainee:
    """A model trained on one objective, in turns."""

    def __init__(self, options: Objectives, objective: str, data: TokenDataset):
        arch, name, config = jaxmodels.preset(options.preset)
        self.package = jaxmodels.arch(arch)
        self.config = replace(config, vocab=data.vocab_size, objective=objective)
        recipe = self.package.RECIPES[name]
        rate = options.steps / 10
        # The number of steps is not known in advance: no decay.
        optim = replace(recipe.optim, warmup=rate, end_lr=recipe.optim.peak_lr)
        self.recipe, self.mesh = replace(recipe, optim=optim, steps=10**9), make_mesh()
        self.graphdef, fresh, _, self.step = training(
            self.package, self.config, self.recipe, self.mesh
        )
        self.batches = iter(data.train())
        self.state, self.steps, self.seconds = fresh(), 0, 0.0
        self.state, metrics = self.step(fresh(), put_batch(next(self.batches), self.mesh))
        metrics.values.block_until_ready()  # compiled, and one step done

    def train(self, seconds: float) -> None:
        """Trains for about this many seconds."""
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            batch = put_batch(next(self.batches), self.mesh)
            self.state, metrics = self.step(self.state, batch)
            metrics.values.block_until_ready()
            self.steps += 1
        self.seconds += spent

    def measured(self, windows: np.ndarray, data: TokenDataset) -> dict[str, float | int]:
        """Bits per character: of the characters after the windows, and by the objective's loss."""

        @jax.jit
        def one(params: Any, rest: Any, tokens: Any) -> Any:
            model = self.graphdef.merge(params, rest)
            return cross_entropy(model(tokens[:, :-1])[0], tokens[:, -1])

        params, rest = self.state.params, self.state.model_state
        parts = [
            float(one(params, rest, part)) for part in windows.reshape(64, -1, windows.shape[1])
        ]
        metrics = evaluate(loss_function(self.package, self.graphdef), params, rest, data.valid())
        assert metrics is not None
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "characters_predicted": self.steps
            * self.recipe.batch
            * (self.config.context if self.config.objective == "dense" else 1),
            "bits_per_character": float(np.mean(parts)) / log(2),
            "bits_per_character_of_own_loss": metrics["loss"] / log(2),
        }


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them."""
    options = parse(Objectives, argv, "bench objectives")
    arch, name, config = jaxmodels.preset(options.preset)
    recipe = jaxmodels.arch(arch).RECIPES[name]
    run = Run("objectives", {**asdict(options), "out": "", "threads": cores(), "windows": WINDOWS})
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(
            "pydoc", folder=Path(folder) / "data", context=config.context, batch=recipe.batch
        )
        assert isinstance(data, TokenDataset)
        trainees = {o: Trainee(options, o, data) for o in ("next_char", "dense")}
        while min(t.seconds for t in trainees.values()) < options.seconds:
            for trainee in trainees.values():
                trainee.train(min(TURN, options.seconds))
        windows = _windows(data, config.context)
        records = []
        for objective, trainee in trainees.items():
            measured = trainee.measured(windows, data)
            bits = measured["bits_per_character"]
            records.append(run.record(options.preset, objective, "bits", bits, **measured))
    say(f"added to {save(records, options.out)}")
    for record in records:
        print(
            f"{record['contestant']}: {record['bits_per_character']:.3f} bits per character after "
            f"{record['seconds']:.0f} s and {record['steps']} steps"
        )
    return records


def _windows(data: TokenDataset, context: int) -> np.ndarray:
    """Windows [n, context + 1] from all over the held-out text, the same for both."""
    rows = np.concatenate([batch["tokens"] for batch in data.valid(None)])
    text = rows[:, :-1].reshape(-1)
    starts = np.random.default_rng(0).integers(0, len(text) - context, WINDOWS)
    return np.asarray(text[starts[:, None] + np.arange(context + 1)])
