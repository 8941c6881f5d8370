"""The training loop: every step recorded once, every stop resumable."""

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
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import platform
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.files import write_bytes, write_text
from jaxmodels.runtime.finite import NotFinite, are_not_finite, not_finite
from jaxmodels.runtime.metrics import MetricsLog, Silent
from jaxmodels.runtime.multihost import processes
from jaxmodels.runtime.planning import chips, plan
from jaxmodels.runtime.reporting.progress import Progress, amounts
from jaxmodels.runtime.runs import checkpoint as ckpt
from jaxmodels.runtime.runs.outcome import EARLY, Outcome
from jaxmodels.runtime.sharding import everywhere, make_mesh, put_batch
from jaxmodels.runtime.stats import StatsLog
from jaxmodels.runtime.step import State, StepMetrics, training
from jaxmodels.runtime.stop import Stop
from jaxmodels.runtime.training.divergence import Rollbacks
from jaxmodels.runtime.training.patience import Patience
from jaxmodels.runtime.training.profiler import Window
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
    """Asked between steps; it hears signals if it was entered."""
    sampler: Callable[[Any], Sample] | None = None
    """What the model (a module) writes now; printed as training goes."""
    begin: Callable[[State], State] = lambda state: state
    """What makes of a fresh state the one that the run begins with."""
    resumed: Callable[[int], None] = lambda step: None
    """Told the step of the checkpoint that the run goes on from."""
    profile: Window | None = None
    """Steps to trace."""


SAVE, STOP = 1, 2  # what a process may ask the others for


def train(job: Job) -> Outcome:
    """Trains to `recipe.steps`, or until told to stop, and leaves a committed checkpoint.

    Raises:
        NotFinite: (verification failed) the loss or the parameters are not finite; what was saved
            before stays.
        Problem: (corrupt) every checkpoint to resume from is damaged, or the run's files are not
            those that it was saved with.
        OSError: the disk is full; the checkpoints that were complete stay as they were.
    """
    return _Loop(job).run()


class _Loop:
    """The loop's state between steps.

    Several processes go through it alike. What one of them alone can know (a signal, the clock, a
    file) decides only after it was exchanged; what leaves the devices is the same for all.
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
        self.beginning = job.batches.get_state() if recipe.on_divergence == "rollback" else None
        self.state = self._restore()
        if self.outcome.step:
            self.outcome.resumed_from = self.outcome.step
            say(f"resumed from checkpoint {self.outcome.step}")
            job.resumed(self.outcome.step)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self.sizes = {path: leaf.size for path, leaf in self.state.params.items()}
        self.inline = platform.computes_inline(sum(self.sizes.values()))
        peak = chips.peak_flops(jax.devices()[0].device_kind)
        self.peak = (peak or 0.0) * self.mesh.size  # operations a second of all devices
        planned = plan.Job(job.package, job.config, recipe)
        self.work = plan.useful_flops(planned) if peak else 0  # operations of a step
        self.agreed = False  # several processes want to stop
        self.rollbacks = Rollbacks(job.run, recipe)
        self._open_logs()

    def _restore(self) -> State:
        """The state of the newest sound checkpoint, and the data's position; or a fresh one."""
        restored = self.checkpoints.resume(self.abstract)
        if restored is None:
            self.outcome.step, self.outcome.checkpoint = 0, None
            return self.job.begin(self.fresh())
        self.job.batches.set_state(restored.data)
        self.outcome.step = self.outcome.checkpoint = int(restored.state.step)
        return restored.state

    def _open_logs(self) -> None:
        """Takes the logs up where the state is."""
        recipe, out = self.job.recipe, self.outcome
        self.log: MetricsLog | Silent = Silent()
        self.stats: StatsLog | Silent = Silent()
        if processes.is_primary():
            self.log = MetricsLog(self.job.run, out.step)
            self.stats = StatsLog(self.job.run, out.step, recipe.stats_every, self.sizes)
        out.loss = processes.broadcast(self.log.last.get("loss"))
        seen = [record["valid_loss"] for record in self.log.evaluated]
        self.patience = Patience(recipe.patience).replay(processes.broadcast(seen))
        # Numbers of the last step: on the device, then on the host, then in the log.
        self.pending: tuple[dict[str, Any], dict[str, int], StepMetrics] | None = None
        self.record: dict[str, Any] | None = None
        self.numbers: jax.Array | None = None
        self.jumped = 0.0  # the loss, between two steps since the last save
        self.asked = False  # for a save, because the time for one has come
        self.ticks = self.saved_at = time.monotonic()
        self.saved = out.checkpoint

    def _close_logs(self) -> None:
        for log in (self.log, self.stats):
            log.close()
        self.log = self.stats = Silent()

    def run(self) -> Outcome:
        steps, out, profile = self.job.recipe.steps, self.outcome, self.job.profile
        try:
            if profile is not None and profile.last <= out.step:
                say(f"--profile: step {profile.last} is done already; nothing will be traced")
            with Progress(out.step, steps, shown=processes.is_primary()) as self.progress:
                while True:
                    try:
                        self._steps()
                        return out
                    except NotFinite as problem:
                        self._roll_back(problem)
        finally:
            if profile is not None:
                profile.stop()
            self._close_logs()

    def _steps(self) -> None:
        due = self._due()
        while self.outcome.step < self.outcome.steps and not due and not self.patience.over:
            with self._profiled(self.outcome.step + 1):
                self._one()
            due = self.agreed if processes.several() else self._due()
        self._finish()

    def _roll_back(self, problem: NotFinite) -> None:
        """Goes back to the newest checkpoint, and past the data of the steps up to the problem.

        Raises:
            NotFinite: the recipe does not ask for it, or it did not help.
        """
        batches, out = self.job.batches, self.outcome
        self.checkpoints.wait()  # the one before the problem may be under way
        self.rollbacks.refuse(problem)
        self._close_logs()
        batches.set_state(self.beginning)
        self.state = self._restore()
        skipped = self.rollbacks.after(problem, out.step)
        for _ in range(skipped):
            next(batches)
        self._open_logs()
        of = "a step" if skipped == 1 else f"{skipped} steps"
        back = f"back to step {out.step}, leaving out the data of {of} from there"
        self.progress.say(f"{problem.what}: {back}")

    @contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        """Starts and ends the trace around the steps that the profile is of."""
        profile = self.job.profile
        if profile is None:
            yield
            return
        profile.before(step)
        yield
        if profile.ends(step):
            self._settle()
            if profile.stop():
                here = profile.folder
                self.progress.say(f"steps {profile.first} to {profile.last} traced: {here}")
            self.ticks = time.monotonic()

    def _one(self) -> None:
        """One step, and what is due after it. The loss of a step is read during the next, unless
        it is there already.
        """
        recipe, out = self.job.recipe, self.outcome
        with self.outcome.timed("data"):
            rows = recipe.batch * recipe.accum
            own = next(self.job.batches)
            batch = put_batch(own, self.mesh, rows, wait=self.inline)
            stop = self._flag()
        with self.outcome.timed("start" if out.step in (0, out.resumed_from) else "train"):
            self.state, told = self.step_function(self.state, batch, stop)
            self._record()
        out.step += 1
        self.pending = ({"step": out.step}, amounts(own, rows), told)
        if self.inline:
            self._settle()
        last = out.step == recipe.steps
        extra = {}
        if last or out.step % recipe.eval_every == 0:
            extra = self._evaluate()
        wanted = self.asked if processes.several() else self._save_due()
        if last or extra or self.jumped or wanted or out.step % recipe.save_every == 0:
            self._save(extra)
        if self.job.sampler and recipe.sample_every and out.step % recipe.sample_every == 0:
            self._sample()

    def _settle(self) -> None:
        """Waits for the last step's numbers and takes its time."""
        if self.pending is None:
            return
        (record, amounts, told), self.pending = self.pending, None
        record |= told.read()
        if told.stop is not None:
            self.agreed |= int(told.stop) >= STOP
            self.asked |= int(told.stop) >= SAVE
        self.numbers = told.stats
        if not math.isfinite(record["loss"]):
            step = record["step"]
            raise NotFinite(f"the loss of step {step} is not a finite number", step)
        now, out = time.monotonic(), self.outcome
        self._watch(record["step"], record["loss"])
        seconds, self.ticks = max(now - self.ticks, 1e-9), now
        out.loss = record["loss"]
        speeds = {f"{name}_per_second": count / seconds for name, count in amounts.items()}
        self.record = record | {name: round(speed, 1) for name, speed in speeds.items()}
        if self.work:
            speeds["mfu"] = self.work / seconds / self.peak
            self.record["mfu"] = round(speeds["mfu"], 4)
        first = record["step"] == (out.resumed_from or 0) + 1
        if not first:
            out.smooth(speeds, seconds)
        left = (out.steps - record["step"]) * (out.step_seconds or seconds)
        self.progress.update(record["step"], record["loss"], {} if first else out.speeds, left)

    def _record(self, **extra: float) -> None:
        """Writes the record of the last step, with what an evaluation added."""
        self._settle()
        if self.record is not None:
            self.log.write(self.record | extra)
            self.stats.write(self.record["step"], self.numbers)
            self.record = None

    def _watch(self, step: int, loss: float) -> None:
        """Notes that the loss of a step jumped, so that the next save comes at once.

        The loss of a step is known when the step after it is under way, so what is saved is the
        state after the one or the other. To go back before the jump there is the checkpoint
        before it, which is kept too.
        """
        jump = 0.0 if self.outcome.loss is None else loss - self.outcome.loss
        if self.job.recipe.jump and abs(jump) > self.job.recipe.jump:
            self.jumped = max(self.jumped, jump, key=abs)
            self.progress.say(f"step {step}: the loss jumped by {jump:+.4f}; saving a checkpoint")

    def _evaluate(self) -> dict[str, float]:
        """The validation loss and metrics of this step; empty without any, or if a stop is due."""
        self._settle()
        with self.outcome.timed("eval"):
            state, job, out = self.state, self.job, self.outcome
            found = len(job.valid) and evaluate(
                self.loss_function, state.weights, state.model_state, job.valid, self._due
            )
        if not found:
            return {}
        loss = found["loss"]
        finite = math.isfinite(loss)
        if not finite and (odd := not_finite(state)):
            raise NotFinite(f"after step {out.step} {are_not_finite(odd)}", out.step)
        self.patience.see(loss)
        out.valid_loss = loss if finite else None
        if finite and (out.best_valid_loss is None or loss < out.best_valid_loss):
            out.best_valid_loss, out.best_step = loss, out.step
        which = " of the averaged weights" if state.ema else ""
        note = "" if finite else ", which is not finite and never counts as the best"
        self.progress.say(f"step {out.step}: validation loss {loss:.4f}{which}{note}")
        self.ticks = time.monotonic()
        return {f"valid_{name}": value for name, value in found.items()}

    def _save(self, extra: dict[str, float]) -> None:
        """Saves this step, after its record and all before it are on the disk."""
        with self.outcome.timed("save"):
            self._record(**extra)
            self.log.flush()
            self.stats.flush()
            jump, self.jumped = {"jump": self.jumped} if self.jumped else {}, 0.0
            self.checkpoints.save(self.state, self.job.batches.get_state(), extra | jump)
        self.saved, self.asked = self.outcome.step, False
        self.ticks = self.saved_at = time.monotonic()

    def _sample(self) -> None:
        self._settle()
        with self.outcome.timed("eval"):
            assert self.job.sampler is not None
            state, step = self.state, self.outcome.step
            try:
                text, png = self.job.sampler(self.graphdef.merge(state.weights, state.model_state))
            except Problem as problem:
                if odd := not_finite(state):
                    raise NotFinite(f"after step {step} {are_not_finite(odd)}", step) from problem
                self.progress.say(f"no sample at step {step}: {problem.what}")
                return
            if processes.is_primary():
                folder = self.job.run / "samples"
                folder.mkdir(exist_ok=True)
                write_text(folder / f"{step}.txt", text + "\n")
                if png is not None:
                    write_bytes(folder / f"{step}.png", png)
            self.progress.say(f"--- sample at step {step}\n{text}\n---")
        self.ticks = time.monotonic()

    def _due(self) -> bool:
        """Whether to stop. Several processes wait for one another's answer."""
        own = self.stop.due(self._reserve())
        self.agreed = self.agreed or any(processes.all_gather(own))
        return self.agreed

    def _flag(self) -> jax.Array | None:
        """What this process wants, for the step to tell the others, and this one too: to stop, or
        (by the clock of the first one) to save.

        They all read it with the loss of that step, that is during the next, and do it after that.
        """
        if not processes.several():
            return None
        save = SAVE if processes.is_primary() and self._save_due() else 0
        return everywhere(STOP if self.stop.due(self._reserve()) else save, self.mesh)

    def _save_due(self) -> bool:
        """Whether the time for a save has come."""
        minutes = self.job.recipe.save_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _reserve(self) -> float:
        """Seconds to keep for the end: two steps, a save at half of its last speed, an exit.

        Before the first save, a disk that writes 100 MB a second is assumed.
        """
        done = self.outcome.step - (self.outcome.resumed_from or 0)
        step = self.outcome.seconds["train"] / max(done, 1)
        return 2 * step + 2 * (self.checkpoints.seconds or self.bytes / 1e8) + 5

    def _finish(self) -> None:
        out = self.outcome
        if out.step < out.steps:
            reasons = filter(None, processes.all_gather(self.stop.reason))
            out.reason = next(reasons, EARLY if self.patience.over else out.reason)
        if self.saved != out.step and out.step:
            self._save({})
        with self.outcome.timed("save"):
            self.checkpoints.wait()
        out.add_best(self.checkpoints.folder)
        out.checkpoint = out.step or None
        out.reserve = self._reserve()
