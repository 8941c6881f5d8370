"""Plots of a run from its metrics.jsonl and stats.jsonl, as files and for its report."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodels.cli import say
from jaxmodels.files import write_bytes
from jaxmodels.reading import json_object
from jaxmodels.runtime.paths import layer_of
from jaxmodels.runtime.reporting.pictures import picture, title
from jaxmodels.runtime.stats import FILE as STATS

Record = dict[str, Any]

METRICS = "metrics.jsonl"
OF_ALL = {"step", "loss", "grad_norm", "lr", "tokens_per_second", "images_per_second"}
"""Fields in the records of every run."""


def draw(run: Path) -> None:
    """Writes loss.png, metrics.png and stats.png, those for which there are numbers."""
    for name, png in pictures(run, {"loss": loss, "metrics": extra_metrics, "stats": stats}):
        try:
            write_bytes(run / f"{name}.png", png)
        except OSError as error:  # a missing plot must not fail the run
            say(f"no plot of {name}: {error}")


def pictures(
    run: Path, plots: dict[str, Callable[[Path], Any]], dpi: int = 100
) -> Iterator[tuple[str, bytes]]:
    """Name and PNG content of each plot that is not empty."""
    for name, plot in plots.items():
        if (png := picture(name, partial(plot, run), dpi)) is not None:
            yield name, png


def loss(run: Path) -> Any:
    """The training loss, its running mean, and the validation losses."""
    from matplotlib.figure import Figure

    records, stride = thinned(run / METRICS, 4000, always='"valid_loss"')
    if not records:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    _curve(axes, records, "loss", stride)
    axes.set(xlabel="optimiser step", ylabel="loss (nats)", title=title(run.absolute().name))
    axes.legend()
    return figure


def extra_metrics(run: Path) -> Any:
    """The metrics that the loss adds, one panel each; None without any."""
    return _panels(run, lambda name: name not in OF_ALL)


def curves(run: Path) -> dict[str, Callable[[Path], Any]]:
    """Metric → its curve by itself, readable on a phone; the loss first."""
    records, stride = thinned(run / METRICS, 4000, always='"valid_loss"')

    def curve(name: str, _: Path) -> Any:
        figure, axes = _small_figure()
        _curve(axes, records, name, stride)
        axes.set(xlabel="optimiser step")
        axes.legend(loc="best", framealpha=0.5)
        return figure

    return {name: partial(curve, name) for name in _names(records, lambda name: name != "step")}


def _small_figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    return figure, figure.subplots()


def _names(records: list[Record], wanted: Callable[[str], bool]) -> list[str]:
    there = dict.fromkeys(name for record in records for name in record)
    return [name for name in there if wanted(name) and not name.startswith("valid_")]


def _panels(run: Path, wanted: Callable[[str], bool]) -> Any:
    from matplotlib.figure import Figure

    records, stride = thinned(run / METRICS, 4000, always='"valid_loss"')
    names = _names(records, wanted)
    if not names:
        return None
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _curve(axes, records, name, stride)
        axes.set(title=name, xlabel="optimiser step")
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title(run.absolute().name))
    return figure


def _curve(axes: Any, records: list[Record], name: str, stride: int) -> None:
    """A metric by step, its running mean, and its values at evaluations."""
    steps, values = numbers(records, name)
    width = max(1, len(values) // 25)
    faint = {"alpha": 0.3, "linewidth": 0.8} if width > 1 else {"marker": "."}
    axes.plot(steps, values, color="tab:blue", label="training, one step", **faint)
    if width > 1:
        label = f"training, mean over {width * stride} steps"
        axes.plot(steps, running_mean(values, width), color="tab:blue", label=label)
    valid = numbers(records, f"valid_{name}")
    if len(valid[0]):
        axes.plot(*valid, "o-", color="tab:orange", label="validation")
    for part in sorted({key for r in records for key in r if key.startswith(f"valid_{name}/")}):
        source = title(part.partition("/")[2])
        axes.plot(*numbers(records, part), ".--", linewidth=0.8, label=f"validation, {source}")
    axes.grid(alpha=0.3)


def numbers(records: list[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps whose records have the metric, and its values."""
    there = [record for record in records if name in record]
    return np.array([r["step"] for r in there]), np.array([r[name] for r in there], float)


def layer_curves(run: Path) -> tuple[dict[str, Callable[[Path], Any]], dict[str, str]]:
    """Statistic → its curves, a line for each layer; and layer → colour, as #rrggbb."""
    steps, layers = _layers(run)
    colours = _colours(list(layers[0]) if layers else [])

    def curve(panel: tuple[str, str, str], _: Path) -> Any:
        figure, axes = _small_figure()
        _layer_lines(axes, steps, layers, panel, colours)
        return figure

    return {panel[0]: partial(curve, panel) for panel in _PANELS if layers}, colours


def _layers(run: Path) -> tuple[list[int], list[dict[str, dict[str, float]]]]:
    records, _ = thinned(run / STATS, 200)
    return [record["step"] for record in records], [by_layer(r["params"]) for r in records]


def _colours(names: list[str]) -> dict[str, str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["viridis"](np.linspace(0, 1, len(names)))
    return {name: to_hex(shade) for name, shade in zip(names, shades, strict=True)}


def _layer_lines(
    axes: Any,
    steps: list[int],
    layers: list[dict[str, dict[str, float]]],
    panel: tuple[str, str, str],
    colours: dict[str, str],
) -> None:
    number, heading, scale = panel
    for name, colour in colours.items():
        values = [row[name][number] for row in layers]
        axes.plot(steps, values, ".-", color=colour, linewidth=1, label=name)
    axes.set(title=heading, xlabel="optimiser step")
    positive = any(row[name][number] > 0 for row in layers for name in colours)
    axes.set_yscale(scale if positive else "linear")
    axes.grid(alpha=0.3)


def stats(run: Path) -> Any:
    """Gradients, updates and parameters of each layer over the run."""
    from matplotlib.figure import Figure

    steps, layers = _layers(run)
    if not layers:
        return None
    colours = _colours(list(layers[0]))
    names = list(colours)
    figure = Figure(figsize=(14, 8), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True)
    for axes, panel in zip(grid.flat, _PANELS, strict=True):
        _layer_lines(axes, steps, layers, panel, colours)
    figure.suptitle(f"{title(run.absolute().name)}: parameters and gradients by layer")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    chosen = evenly_spaced(len(names), 16)
    figure.legend(
        [handles[i] for i in chosen], [labels[i] for i in chosen], loc="outside right upper"
    )
    return figure


_PANELS = (
    ("grad_norm", "norm of the gradient", "log"),
    ("grad_mean_abs", "mean |g|", "log"),
    ("grad_vanishing", "share of |g| < 1e-6", "linear"),
    ("norm", "norm of the parameters", "log"),
    ("update_ratio", "norm of the update / norm of the parameters", "log"),
    ("grad_exploding", "share of |g| > 100", "linear"),
)


def by_layer(params: dict[str, Record]) -> dict[str, dict[str, float]]:
    """Layer → the plotted numbers, combined from its parameters'; NaN where one is null."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for path, row in params.items():
        groups[layer_of(path)].append(
            {name: math.nan if value is None else value for name, value in row.items()}
        )
    return {layer: _combine(groups[layer]) for layer in sorted(groups, key=_natural)}


def _natural(layer: str) -> list[tuple[int, str]]:
    """A sort key that puts blocks/9 before blocks/10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in layer.split("/")]


def _combine(rows: list[Record]) -> dict[str, float]:
    sizes = [row["size"] for row in rows]
    norm = math.hypot(*(row["norm"] for row in rows))
    update = math.hypot(*(row["update_ratio"] * row["norm"] for row in rows))
    means = {
        name: float(np.average([row[name] for row in rows], weights=sizes))
        for name in ("grad_mean_abs", "grad_vanishing", "grad_exploding")
    }
    return {
        "grad_norm": math.hypot(*(row["grad_norm"] for row in rows)),
        "norm": norm,
        "update_ratio": update / norm if norm else 0.0,
        **means,
    }


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the `width` values around each, of fewer at the ends."""
    window = np.ones(width)
    counts = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / counts


def thinned(path: Path, most: int, always: str = "\0") -> tuple[list[Record], int]:
    """Every n-th record of a file of JSON lines, so that about `most` are parsed; and n.

    The last line, and lines that contain `always`, are added. Unreadable lines, such as one cut
    off by a kill, are skipped.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines()
    stride = math.ceil(len(lines) / most) if lines else 1
    records = []
    for index, line in enumerate(lines):
        if index % stride == 0 or index == len(lines) - 1 or always in line:
            with suppress(ValueError):
                records.append(json_object(line.encode()))
    return [record for record in records if type(record.get("step")) is int], stride


def evenly_spaced(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly spaced, the first and the last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})
