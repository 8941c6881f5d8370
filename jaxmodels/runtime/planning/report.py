"""What `plan` says of a compiled step: bounds of its time, the compiler's estimate, memory."""

from typing import Any

from jaxmodels.runtime.planning import hlo
from jaxmodels.runtime.planning.chips import Topology
from jaxmodels.runtime.planning.plan import Compiled, TooLarge, Workload, useful_flops


def roofline(compiled: Compiled, slice_: Topology) -> dict[str, float]:
    """Lower bounds of a step's seconds by its operations, its memory traffic and its links.

    Operations run at the peak rate, every byte passes once, all links are busy, and all of it
    overlaps: a step cannot be faster than the slowest of the three.
    """
    waits = (one.count * one.sent / slice_.rate(one.members) for one in compiled.collectives)
    return {
        "compute": compiled.flops / (slice_.devices * slice_.flops),
        "memory": compiled.traffic / slice_.bandwidth,
        "interconnect": sum(waits, 0.0),
    }


def expected(compiled: Compiled, slice_: Topology) -> dict[str, float]:
    """Seconds of a step by the compiler's own model of the chip; empty if it gives none.

    It knows no cost of kernels, and on TPUs none of collectives: a kernel counts as its products at
    the peak rate, a collective as the time in which nothing else runs.
    """
    if not compiled.operations:
        return {}
    clock = slice_.chip.clock

    def exposed(one: hlo.Collective) -> float:
        # XLA takes eight GPUs for one host, however many a host has.
        takes = max(one.sent / slice_.rate(one.members), (one.cycles or 0) / clock)
        return one.count * max(0.0, takes - one.beside / clock)

    return {
        "operations": sum(row.cycles for row in compiled.operations) / clock,
        "kernels": compiled.kernels / (slice_.devices * slice_.flops),
        "exposed_collectives": sum(map(exposed, compiled.collectives), 0.0),
    }


def report(job: Workload, compiled: Compiled, slice_: Topology) -> dict[str, Any]:
    """The result of `jaxmodels plan --json`.

    Bytes are of one device, operations of all devices. `roofline` times are lower bounds,
    `expected` times an estimate by the compiler's model of the chip, not a measurement.
    """
    times, useful = roofline(compiled, slice_), useful_flops(job)
    bound = max(times, key=lambda name: times[name])
    peak = slice_.devices * slice_.flops
    likely: dict[str, Any] = {}
    if parts := expected(compiled, slice_):
        seconds = max(sum(parts.values()), times[bound])
        likely = {
            "expected_step_seconds": seconds,
            "expected_mfu": useful / (seconds * peak),
            "expected_tokens_per_second": job.tokens / seconds,
            "expected": parts,
        }
    return likely | {
        "fits": compiled.bytes <= slice_.chip.usable,
        "hbm_per_device_bytes": compiled.bytes,
        "hbm_limit_bytes": slice_.chip.usable,
        "memory": compiled.memory,
        "flops_per_step": useful,
        "flops_with_remat": compiled.flops,
        "roofline_step_seconds": times[bound],
        "roofline": times,
        "bound": bound,
        "mfu_bound": useful / (times[bound] * peak),
        "tokens_per_step": job.tokens,
        "tokens_per_second_bound": job.tokens / times[bound],
        "collectives": hlo.summary(compiled.collectives),
        "kernels": compiled.calls,
        "chip": slice_.sheet,
        "trace_seconds": round(compiled.trace_seconds, 3),
        "compile_seconds": round(compiled.compile_seconds, 3),
    }


def too_large_report(job: Workload, error: TooLarge, slice_: Topology) -> dict[str, Any]:
    """The `report` of a step that does not fit: only its operations are known."""
    useful = useful_flops(job)
    seconds = useful / (slice_.devices * slice_.flops)
    return {
        "fits": False,
        "hbm_per_device_bytes": error.needed,
        "hbm_limit_bytes": slice_.chip.usable,
        "flops_per_step": useful,
        "roofline_step_seconds": seconds,
        "roofline": {"compute": seconds},
        "bound": "compute",
        "tokens_per_step": job.tokens,
        "collectives": {},
        "compile_seconds": round(error.seconds, 3),
    }
