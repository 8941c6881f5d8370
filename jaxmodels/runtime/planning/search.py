"""A search for the best mesh, batch and remat: estimates choose what is worth compiling."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from jaxmodels.errors import Problem
from jaxmodels.runtime.planning.chips import GIB, GpuHosts, Topology, topology
from jaxmodels.runtime.planning.estimate import Estimate, Setting, settings
from jaxmodels.runtime.planning.plan import Compiled, TooLarge, Workload

LARGER = 3
"""Trials of larger batches."""


@dataclass(frozen=True)
class Trial:
    """A setting that was compiled."""

    setting: Setting
    job: Workload
    compiled: Compiled | None
    """None if it does not fit or the compiler failed."""
    needed: int
    """Bytes on one device; 0 if the compiler failed."""
    report: dict[str, Any]
    """The result of `report.report`; empty without `compiled`."""

    @property
    def speed(self) -> float:
        """Tokens a second, expected or else an upper bound; 0 if it does not fit."""
        most = self.report.get("tokens_per_second_bound", 0.0)
        return float(self.report.get("expected_tokens_per_second", most))


def enough(job: Workload, slice_: Topology) -> str:
    """The least devices of this kind on which the job fits by an estimate; empty if none do.

    With the smallest batch and full remat, parameters split over all devices.
    """
    kind = slice_.name.partition(":")[0]
    gpus = ("2", "4", "8", *(f"{hosts}x8" for hosts in (2, 4, 8, 16, 32)))
    shapes = gpus if isinstance(slice_, GpuHosts) else slice_.chip.shapes
    for larger in (topology(f"{kind}:{shape}") for shape in shapes):
        least = Setting(larger.devices, 1, larger.devices, "full")
        fits = larger.devices > slice_.devices and (
            Estimate(job, larger).bytes(least) <= larger.chip.usable
        )
        if fits:
            return larger.name
    return ""


class Search:
    """Compiles settings one after the other until the time is up.

    Args:
        job: the job whose settings are varied.
        slice_: the devices.
        compiled: compiles a job; raises TooLarge, or Problem if the compiler fails.
        reported: `report.report` of a job and its compilation.
        seconds: no compilation starts later than this.
        say: prints progress.
    """

    def __init__(
        self,
        job: Workload,
        slice_: Topology,
        compiled: Callable[[Workload], Compiled],
        reported: Callable[[Workload, Compiled], dict[str, Any]],
        seconds: float,
        say: Callable[[str], None],
    ):
        self.job, self.slice, self.say = job, slice_, say
        self.compiled, self.reported = compiled, reported
        self.estimate = Estimate(job, slice_)
        self.until = time.monotonic() + seconds
        self.trials: list[Trial] = []

    def frontier(self, most: int = 8) -> list[Trial]:
        """Compiles the most promising settings; returns all trials, the fastest first.

        It ends when no estimate is faster than the best trial, or after `most` trials. The last of
        these are for larger batches of the best one: estimates do not know that these are faster.
        """
        waiting = self._promising()
        while waiting and not self._over(most - LARGER):
            setting = max(waiting, key=self.estimate.tokens_per_second)
            waiting.remove(setting)
            fastest = max((trial.speed for trial in self.trials), default=0.0)
            if self.estimate.tokens_per_second(setting) < 1.01 * fastest:
                break
            if self._fits(setting) and self._tried(setting).compiled:
                continue
            if setting.batch // 2 >= setting.data:
                waiting.append(replace(setting, batch=setting.batch // 2))
        while self.trials and not self._over(most):
            best = max(self.trials, key=lambda trial: trial.speed)
            larger = replace(best.setting, batch=2 * best.setting.batch)
            known = any(trial.setting == larger for trial in self.trials)
            if not best.compiled or known or not self._fits(larger):
                break
            if self._tried(larger).speed < 1.01 * best.speed:
                break
        return sorted(self.trials, key=lambda trial: -trial.speed)

    def nearest(self, failed: Setting, needed: int, most: int = 6) -> Trial | None:
        """The trial that fits and is nearest to a setting that does not; None if none was found.

        Another remat policy is nearer than another mesh, and that nearer than half the batch. In
        the end the smallest estimates are tried, even if they exceed the limit.
        """
        if needed:
            self.estimate.learn(failed, needed)

        def distance(setting: Setting) -> float:
            changes = (setting.remat != failed.remat) + 1.5 * (setting.mesh != failed.mesh)
            return 2 * log2(failed.batch / setting.batch) + changes

        others = [
            setting
            for setting in settings(self.job, self.slice.devices)
            if setting.batch <= failed.batch and setting != failed
        ]
        for setting in sorted(others, key=distance):
            if self._over(most):
                return None
            if self._fits(setting) and (trial := self._tried(setting)).compiled:
                return trial
        tried = {trial.setting for trial in self.trials}
        for setting in sorted(set(others) - tried, key=self.estimate.bytes)[:2]:
            if not self._over(most) and (trial := self._tried(setting)).compiled:
                return trial
        return None

    def _promising(self) -> list[Setting]:
        """For each mesh and policy, the smallest batch that is as fast as larger ones."""
        best: dict[Any, Setting] = {}
        speed = self.estimate.tokens_per_second
        for setting in settings(self.job, self.slice.devices):
            key = setting.mesh, setting.remat
            faster = key not in best or speed(setting) > 1.02 * speed(best[key])
            if faster and self._fits(setting):
                best[key] = setting
        return list(best.values())

    def _fits(self, setting: Setting) -> bool:
        return self.estimate.bytes(setting) <= self.slice.chip.usable

    def _over(self, most: int) -> bool:
        return len(self.trials) >= most or time.monotonic() > self.until

    def _tried(self, setting: Setting) -> Trial:
        """Compiles a setting, prints the result, and corrects the estimates by it."""
        job, compiled, report = setting.of(self.job), None, {}
        estimated = self.estimate.bytes(setting) / GIB
        self.say(f"compiling {job.flags} (estimated {estimated:.1f} GiB)")
        try:
            compiled = self.compiled(job)
            needed = compiled.bytes
        except TooLarge as error:
            needed = error.needed
        except Problem as problem:
            self.say(f"  {problem.what}")
            needed = 0
        if needed:
            self.estimate.learn(setting, needed)
            self.say(f"  needs {needed / GIB:.1f} GiB")
        if compiled and needed <= self.slice.chip.usable:
            report = self.reported(job, compiled)
        trial = Trial(setting, job, compiled if report else None, needed, report)
        self.trials.append(trial)
        return trial
