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
    """A lower bound of the hours for the recipe's steps, and the most steps within --hours."""
    seconds = result["roofline_step_seconds"]
    known: dict[str, Any] = {"steps": steps, "hours_at_least": steps * seconds / 3600}
    if hours is not None:
        most = int(3600 * hours / seconds)
        tokens = most * result["tokens_per_step"]
        known["budget"] = {"hours": hours, "steps": most, "tokens": tokens}
    return known


def table(rows: list[dict[str, Any]]) -> None:
    """The settings that were compiled, the fastest first."""
    print(f"{'GiB':>7} {'tokens/s':>12} {'MFU':>5}  settings")
    for row in rows:
        needed = row["hbm_per_device_bytes"]
        speed, mfu = "does not fit" if needed else "failed", ""
        if row["fits"]:
            speed, mfu = f"{row['tokens_per_second_bound']:,.0f}", f"{row['mfu_bound']:.0%}"
        size = f"{needed / GIB:.1f}" if needed else "?"
        print(f"{size:>7} {speed:>12} {mfu:>5}  {row['flags']}")
    print()


def show(result: dict[str, Any]) -> None:
    """The report as text."""
    r, sent = result, result["collectives"].items()
    print(f"{r['name']} on {r['topology']}, {r['devices']} devices: {r['flags']}, {r['dtype']}")
    print(
        f"fits: {r['hbm_per_device_bytes'] / GIB:.2f} of {r['hbm_limit_bytes'] / GIB:.2f} GiB on a "
        "device: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in r["memory"].items())
    )
    print(
        f"a step of {r['tokens_per_step']:,} tokens takes at least "
        f"{_time(r['roofline_step_seconds'])}, bound by {r['bound']}: "
        + ", ".join(f"{name} {_time(seconds)}" for name, seconds in r["roofline"].items())
    )
    print(
        f"at most {r['tokens_per_second_bound']:,.0f} tokens/s, {r['mfu_bound']:.1%} of the peak "
        f"rate; {r['flops_per_step']:.3g} operations, {r['flops_with_remat']:.3g} with remat"
    )
    parts = [f"{row['bytes'] / 1e9:.3g} GB in {row['count']} {kind}" for kind, row in sent]
    print("a device sends: " + (", ".join(parts) or "nothing"))
    print(f"compiled in {r['compile_seconds']:.0f} s, after {r['trace_seconds']:.1f} s of tracing")
    print(f"{r['steps']:,} steps take at least {r['hours_at_least']:,.2f} hours")
    if most := r.get("budget"):
        print(
            f"in {most['hours']:g} hours at most {most['steps']:,} steps, {most['tokens']:,} tokens"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
