"""The report of `jaxmodels plan`, as one object and as text."""

from typing import Any

from jaxmodels.runtime.planning.chips import GIB, Topology


def description(spec: str, job: Any, slice_: Topology) -> dict[str, Any]:
    """What was planned, as the first part of the report."""
    recipe = job.recipe
    return {
        "name": spec,
        "topology": slice_.name,
        "devices": slice_.devices,
        "flags": job.flags,
        "mesh": recipe.mesh,
        "batch": recipe.batch,
        "accum": recipe.accum,
        "remat": recipe.remat,
        "dtype": recipe.dtype,
    }


def budget(result: dict[str, Any], steps: int, hours: float | None) -> dict[str, Any]:
    """The hours for the recipe's steps, and the most steps within --hours."""
    seconds = result["roofline_step_seconds"]
    known: dict[str, Any] = {"steps": steps, "hours_at_least": steps * seconds / 3600}
    likely = result.get("expected_step_seconds")
    if likely:
        known["hours_expected"] = steps * likely / 3600
    if hours is not None:
        most = int(3600 * hours / seconds)
        tokens = most * result["tokens_per_step"]
        known["budget"] = {"hours": hours, "steps": most, "tokens": tokens}
        if likely:
            known["budget"]["steps_expected"] = int(3600 * hours / likely)
    return known


def largest(operations: list[Any], clock: float, most: int = 20) -> list[dict[str, Any]]:
    """The operations that take most of the compiler's cycles, as rows of the report.

    Args:
        operations: the slowest first.
        clock: cycles a second (`Chip.clock`).
        most: rows.
    """
    everything = sum(row.cycles for row in operations)
    return [
        row._asdict() | {"seconds": row.cycles / clock, "share": row.cycles / everything}
        for row in operations[:most]
    ]


def table(rows: list[dict[str, Any]]) -> None:
    """The settings that were compiled, the fastest first."""
    print(f"{'GiB':>7} {'tokens/s':>12} {'MFU':>5}  settings")
    for row in rows:
        needed = row["hbm_per_device_bytes"]
        speed, mfu = "does not fit" if needed else "failed", ""
        if row["fits"]:
            rate = row.get("expected_tokens_per_second", row["tokens_per_second_bound"])
            speed, mfu = f"{rate:,.0f}", f"{row.get('expected_mfu', row['mfu_bound']):.0%}"
        size = f"{needed / GIB:.1f}" if needed else "?"
        print(f"{size:>7} {speed:>12} {mfu:>5}  {row['flags']}")
    print()


def show(result: dict[str, Any]) -> None:
    """The report as text."""
    r = result
    devices = "device" if r["devices"] == 1 else "devices"
    print(f"{r['name']} on {r['topology']}, {r['devices']} {devices}: {r['flags']}, {r['dtype']}")
    _memory(r)
    print(
        f"a step of {r['tokens_per_step']:,} tokens takes at least "
        f"{_time(r['roofline_step_seconds'])}, bound by {r['bound']}: "
        + ", ".join(f"{name} {_time(seconds)}" for name, seconds in r["roofline"].items())
    )
    _expected(r)
    print(
        f"at most {r['tokens_per_second_bound']:,.0f} tokens/s, {r['mfu_bound']:.1%} of the peak "
        f"rate; {r['flops_per_step']:.3g} operations, {r['flops_with_remat']:.3g} with remat"
    )
    sent = r["collectives"].items()
    parts = [f"{row['bytes'] / 1e9:.3g} GB in {row['count']} {kind}" for kind, row in sent]
    print("a device sends: " + (", ".join(parts) or "nothing"))
    calls = [f"{name} × {count}" for name, count in r["kernels"].items()]
    print("kernels: " + (", ".join(calls) or "none but the compiler's own"))
    print(f"a device by the data sheet: {_rates(r['chip'])} ({r['chip']['source']})")
    print(f"compiled in {r['compile_seconds']:.0f} s, after {r['trace_seconds']:.1f} s of tracing")
    _budget(r)
    _operations(r.get("operations", []))


def _memory(r: dict[str, Any]) -> None:
    print(
        f"fits: {r['hbm_per_device_bytes'] / GIB:.2f} of {r['hbm_limit_bytes'] / GIB:.2f} GiB on a "
        "device: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in r["memory"].items())
    )
    share = r["hbm_limit_bytes"] / r["chip"]["memory"]
    if share < 0.9:
        print(
            f"JAX takes {share:.0%} of the {r['chip']['memory'] / GIB:.1f} GiB of a GPU; the "
            "environment variable XLA_CLIENT_MEM_FRACTION=0.92 lets it take more"
        )


def _expected(r: dict[str, Any]) -> None:
    if "expected" not in r:
        print("the compiler has no estimate of the time for this device")
        return
    costs = {name.replace("_", " "): time for name, time in r["expected"].items() if time}
    print(
        f"expected by the compiler's model of the chip, not measured: "
        f"{_time(r['expected_step_seconds'])} a step, {r['expected_tokens_per_second']:,.0f} "
        f"tokens/s, {r['expected_mfu']:.0%} of the peak rate ("
        + ", ".join(f"{name} {_time(time)}" for name, time in costs.items())
        + ")"
    )


def _rates(chip: dict[str, Any]) -> str:
    """Rates of a device, each with its unit."""
    parts = [f"{chip['flops'] / 1e12:,.0f} Tflop/s in bfloat16"]
    names = {"bandwidth": "memory", "nvlink": "NVLink", "link": "a link", "network": "network"}
    parts += [f"{name} {chip[key] / 1e9:,.0f} GB/s" for key, name in names.items() if key in chip]
    return ", ".join(parts)


def _budget(r: dict[str, Any]) -> None:
    likely = f", {r['hours_expected']:,.2f} expected" if "hours_expected" in r else ""
    print(f"{r['steps']:,} steps take at least {r['hours_at_least']:,.2f} hours{likely}")
    if most := r.get("budget"):
        likely = f"; {most['steps_expected']:,} expected" if "steps_expected" in most else ""
        print(
            f"in {most['hours']:g} hours at most {most['steps']:,} steps, {most['tokens']:,} tokens"
            + likely
        )


def _operations(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    print("\nwhere the compiler expects the time to go (share, runs, operation, result, source):")
    for row in rows:
        shape = row["shape"] if len(row["shape"]) <= 44 else row["shape"][:43] + "…"
        print(
            f"{row['share']:6.1%} {row['runs']:5} {row['kind'][:32]:32} {shape:44} {row['source']}"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
