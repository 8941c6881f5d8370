"""The training loop: every step recorded once, every stop resumable.

Processes agree within the step: each passes its wish to stop or save as an input, and all read the
maximum with the loss of that step, so all act after the same step without a further collective.
What only one of them can know otherwise (a file, the clock) goes through JAX's key-value store, so
the thread that writes checkpoints never issues collectives of its own.

During training the evaluation takes every held-out window if `eval_batches` cover them all, and so
agrees with `eval` of the same run, at the cost of one more compilation for the last batch;
otherwise it takes full batches from all over the text.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from jaxmodels.architecture import Architecture
from jaxmodels.cli import say
from jaxmodels.errors import Problem
from jaxmodels.files import write_bytes, write_text
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import platform
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.finite import NotFinite, not_finite, not_finite_message
from jaxmodels.runtime.lora import stored
from jaxmodels.runtime.multihost import processes
from jaxmodels.runtime.paths import Arrays
from jaxmodels.runtime.planning import chips, plan
from jaxmodels.runtime.reporting.progress import Progress, batch_counts
from jaxmodels.runtime.runs import checkpoint as ckpt
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.runs.outcome import STOPPED_EARLY, Outcome
from jaxmodels.runtime.sharding import make_mesh, put_batch, put_flag
from jaxmodels.runtime.step import State, training
from jaxmodels.runtime.stop import Stop
from jaxmodels.runtime.training.divergence import Rollbacks
from jaxmodels.runtime.training.patience import Patience
from jaxmodels.runtime.training.profiler import TracedSteps
from jaxmodels.runtime.training.records import StepRecords
from jaxmodels.runtime.training.samples import Sample


@dataclass
class Job:
    """One call of `train`.

    `batches` is an endless iterator of dicts of arrays with `get_state` and `set_state`;
    `valid` is a sequence of such dicts, always the same.
    """

    package: Architecture
    config: Any
    recipe: Recipe
    batches: Any
    valid: Any
    run: Path
    stop: Stop = field(default_factory=Stop)
    """Polled between steps; it handles signals if it was entered."""
    sampler: Callable[[Any], Sample] | None = None
    """Makes the samples that are printed during training, from the model (a module)."""
    begin: Callable[[State], State] = lambda state: state
    """Turns a fresh state into the run's initial state."""
    resumed: Callable[[int], None] = lambda step: None
    """Called with the step of the checkpoint that the run resumes from."""
    frozen: Callable[[Arrays], Arrays] | None = None
    """With `--lora`: reads the parameters of the base model, which checkpoints do not hold, into
    the places of the abstract ones that it gets (path → ShapeDtypeStruct)."""
    profile: TracedSteps | None = None
    """Steps to trace."""


SAVE, STOP = 1, 2  # a process's flags, in rising priority


def train(job: Job) -> Outcome:
    """Trains to `recipe.steps`, or until asked to stop, and leaves a committed checkpoint.

    Raises:
        NotFinite: (verification failed) the loss or the parameters are not finite; earlier
            checkpoints stay.
        Problem: (corrupt) every checkpoint to resume from is damaged, or the run's files are not
            those of its checkpoint.
        OSError: the disk is full; complete checkpoints stay.
    """
    return _Loop(job).run()


class _Loop:
    """The loop's state between steps.

    All processes run it in lockstep. What only one of them knows (a signal, the clock, a file)
    decides only after an exchange; what the devices return is the same for all.
    """

    def __init__(self, job: Job):
        self.job, self.stop = job, job.stop
        recipe = job.recipe
        self.mesh = make_mesh(recipe.mesh)
        self.graphdef, self.fresh, self.abstract, self.step_function = training(
            job.package, job.config, recipe, self.mesh
        )
        self.loss_function = loss_function(job.package, self.graphdef, self.mesh)
        self.checkpoints = ckpt.Checkpoints(job.run / "checkpoints", recipe.keep)
        self.outcome = Outcome(steps=recipe.steps)
        self.first_position = (
            job.batches.get_state() if recipe.on_divergence == "rollback" else None
        )
        self.state = self._restore()
        if self.outcome.step:
            self.outcome.resumed_from = self.outcome.step
            say(f"resumed from checkpoint {self.outcome.step}")
            job.resumed(self.outcome.step)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._stored(self.state)))
        self.sizes = {path: leaf.size for path, leaf in self.state.params.items()}
        self.inline = platform.computes_inline(sum(self.sizes.values()))
        self.ideal_seconds = 0.0  # of a step at the devices' peak rate, where that is known
        if peak := chips.peak_flops(jax.devices()[0].device_kind):
            planned = plan.Workload(job.package, job.config, recipe)
            self.ideal_seconds = plan.useful_flops(planned) / (peak * self.mesh.size)
        self.stop_agreed = False
        self.rollbacks = Rollbacks(job.run, recipe)
        shown = processes.is_primary()
        self.progress = Progress(self.outcome.step, recipe.steps, shown=shown)
        self._open_logs()

    def _restore(self) -> State:
        """Restores state and data position from the newest sound checkpoint, or starts fresh."""
        restored = self.checkpoints.resume(self._stored(self.abstract))
        if restored is None:
            self.outcome.step, self.outcome.checkpoint = 0, None
            return self.job.begin(self.fresh())
        self.job.batches.set_state(restored.data)
        self.outcome.step = self.outcome.checkpoint = int(restored.state.step)
        state = restored.state
        if self.job.frozen is not None:
            lacking = {p: x for p, x in self.abstract.params.items() if p not in state.params}
            state = state._replace(params=self.job.frozen(lacking) | state.params)
        return state

    def _stored(self, state: State) -> State:
        """What a checkpoint holds of a state."""
        return state._replace(params=stored(self.job.package, state.params))

    def _open_logs(self) -> None:
        """Opens the logs at the state's step."""
        job, out = self.job, self.outcome
        self.records = StepRecords(
            job.run, job.recipe, out, self.progress, self.sizes, self.ideal_seconds
        )
        self.patience = Patience(job.recipe.patience).replay(self.records.valid_losses)
        self.saved, self.saved_at = out.checkpoint, time.monotonic()

    def run(self) -> Outcome:
        """Trains; see `train`."""
        out, profile = self.outcome, self.job.profile
        try:
            if profile is not None and profile.last <= out.step:
                say(f"--profile: step {profile.last} is already done; nothing will be traced")
            with self.progress:
                while True:
                    try:
                        self._steps()
                        return out
                    except NotFinite as problem:
                        self._roll_back(problem)
        finally:
            if profile is not None:
                profile.stop()
            self.records.close()

    def _steps(self) -> None:
        due = self._should_stop()
        if not due:
            self._evaluate_late()
        while self.outcome.step < self.outcome.steps and not due and not self.patience.over:
            with self._profiled(self.outcome.step + 1):
                self._train_step()
            due = self._stop_agreed() if processes.several() else self._should_stop()
        self._finish()

    def _roll_back(self, problem: NotFinite) -> None:
        """Restores the newest checkpoint and skips the data of the steps up to the problem.

        Raises:
            NotFinite: the recipe does not ask for it, or it did not help.
        """
        batches, out = self.job.batches, self.outcome
        self.checkpoints.wait()  # a save may be in progress
        self.rollbacks.refuse(problem)
        self.records.close()
        batches.set_state(self.first_position)
        self.state = self._restore()
        skipped = self.rollbacks.steps_to_skip(problem, out.step)
        for _ in range(skipped):
            next(batches)
        self._open_logs()
        of = "a step" if skipped == 1 else f"{skipped} steps"
        back = f"back to step {out.step}, skipping the data of {of} from there"
        self.progress.say(f"{problem.what}: {back}")

    @contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        """Starts and ends the trace around the steps of the profile."""
        profile = self.job.profile
        if profile is None:
            yield
            return
        profile.before(step)
        yield
        if profile.ends(step):
            self.records.read()
            if profile.stop():
                here = profile.folder
                self.progress.say(f"steps {profile.first} to {profile.last} traced: {here}")
            self.records.restart_clock()

    def _train_step(self) -> None:
        """One step, and what is due after it. The loss of a step is read during the next, unless
        the step is computed inline.
        """
        recipe, out = self.job.recipe, self.outcome
        with self.outcome.timed("data"):
            rows = recipe.batch * recipe.accum
            local = next(self.job.batches)
            batch = put_batch(local, self.mesh, rows, wait=self.inline)
            stop = self._stop_flag()
        with self.outcome.timed("start" if out.step in (0, out.resumed_from) else "train"):
            self.state, metrics = self.step_function(self.state, batch, stop)
        self.records.write()
        out.step += 1
        self.records.add(out.step, batch_counts(local, rows), metrics)
        if self.inline:
            self.records.read()
        last = out.step == recipe.steps
        extra = self._evaluate() if self._evaluation_due() else {}
        wanted = self.records.flag >= SAVE if processes.several() else self._save_due()
        if last or extra or self.records.jump or wanted or out.step % recipe.save_every == 0:
            self._save(extra)
        if self.job.sampler and recipe.sample_every and out.step % recipe.sample_every == 0:
            self._sample()

    def _evaluation_due(self) -> bool:
        step, recipe = self.outcome.step, self.job.recipe
        return step > 0 and (step == recipe.steps or step % recipe.eval_every == 0)

    def _evaluate_late(self) -> None:
        """Evaluates the checkpoint that the run continues from, if a stop had left no time for it:
        the best checkpoint and patience depend on every evaluation."""
        if not self._evaluation_due():
            return
        stored = rundir.metrics(self.checkpoints.folder / str(self.outcome.step))
        if processes.broadcast("valid_loss" in stored):
            return
        if extra := self._evaluate():
            self.records.amend(extra)
            self._save(stored | extra)

    def _evaluate(self) -> dict[str, float]:
        """The validation loss and metrics of this step; empty without any, or if it is to stop."""
        self.records.read()
        with self.outcome.timed("eval"):
            state, job, out = self.state, self.job, self.outcome
            found = len(job.valid) and evaluate(
                self.loss_function, state.weights, state.model_state, job.valid, self._should_stop
            )
        if not found:
            return {}
        loss = found["loss"]
        finite = math.isfinite(loss)
        if not finite and (bad := not_finite(state)):
            raise NotFinite(f"after step {out.step} {not_finite_message(bad)}", out.step)
        self.patience.see(loss)
        out.valid_loss = loss if finite else None
        by_source = {
            name.removeprefix("loss/"): x for name, x in found.items() if name.startswith("loss/")
        }
        out.valid_loss_by_source = {k: x for k, x in by_source.items() if math.isfinite(x)}
        if finite and (out.best_valid_loss is None or loss < out.best_valid_loss):
            out.best_valid_loss, out.best_step = loss, out.step
        which = " of the averaged weights" if state.ema else ""
        note = "" if finite else ", which is not finite and never counts as the best"
        sources = ", ".join(f"{name} {x:.4f}" for name, x in by_source.items())
        sources = f" ({sources})" if sources else ""
        self.progress.say(f"step {out.step}: validation loss {loss:.4f}{which}{sources}{note}")
        self.records.restart_clock()
        return {f"valid_{name}": value for name, value in found.items()}

    def _save(self, extra: dict[str, float]) -> None:
        """Saves this step, after all records up to it are on disk."""
        records = self.records
        records.read()
        with self.outcome.timed("save"):
            records.write(**extra)
            records.flush()
            jump, records.jump = {"jump": records.jump} if records.jump else {}, 0.0
            state = self._stored(self.state)
            self.checkpoints.save(state, self.job.batches.get_state(), extra | jump)
        records.flag = 0 if records.flag == SAVE else records.flag
        self.saved, self.saved_at = self.outcome.step, time.monotonic()
        records.restart_clock()

    def _sample(self) -> None:
        self.records.read()
        with self.outcome.timed("eval"):
            assert self.job.sampler is not None
            state, step = self.state, self.outcome.step
            try:
                weights = self.graphdef.weights(state.weights)
                text, png = self.job.sampler(self.graphdef.merge(weights, state.model_state))
            except Problem as problem:
                if bad := not_finite(state):
                    raise NotFinite(
                        f"after step {step} {not_finite_message(bad)}", step
                    ) from problem
                self.progress.say(f"no sample at step {step}: {problem.what}")
                return
            if processes.is_primary():
                folder = self.job.run / "samples"
                folder.mkdir(exist_ok=True)
                write_text(folder / f"{step}.txt", text + "\n")
                if png is not None:
                    write_bytes(folder / f"{step}.png", png)
            self.progress.say(f"--- sample at step {step}\n{text}\n---")
        self.records.restart_clock()

    def _should_stop(self) -> bool:
        """Whether to stop, agreed between all processes."""
        local = self.stop.due(self._reserve())
        self.stop_agreed = self._stop_agreed() or any(processes.all_gather(local))
        return self.stop_agreed

    def _stop_agreed(self) -> bool:
        """Whether the processes agreed to stop, in an exchange or within a step."""
        return self.stop_agreed or self.records.flag >= STOP

    def _stop_flag(self) -> jax.Array | None:
        """This process's wish to stop or, by the clock of the primary, to save: an input of the
        step, whose maximum all processes read with its loss, and act on after the next step.
        """
        if not processes.several():
            return None
        save = SAVE if processes.is_primary() and self._save_due() else 0
        return put_flag(STOP if self.stop.due(self._reserve()) else save, self.mesh)

    def _save_due(self) -> bool:
        """Whether the time for a save has come."""
        minutes = self.job.recipe.save_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _reserve(self) -> float:
        """Seconds to reserve for the end: two steps, a save at half the last speed, the exit.

        Before the first save, a disk at 100 MB a second is assumed.
        """
        done = self.outcome.step - (self.outcome.resumed_from or 0)
        step = self.outcome.seconds["train"] / max(done, 1)
        return 2 * step + 2 * (self.checkpoints.seconds or self.bytes / 1e8) + 5

    def _finish(self) -> None:
        out = self.outcome
        if out.step < out.steps:
            reasons = filter(None, processes.all_gather(self.stop.reason))
            out.reason = next(reasons, STOPPED_EARLY if self.patience.over else out.reason)
        if self.saved != out.step and out.step:
            self._save({})
        with self.outcome.timed("save"):
            self.checkpoints.wait()
        out.add_best(self.checkpoints.folder)
        out.checkpoint = out.step or None
        out.reserve = self._reserve()
