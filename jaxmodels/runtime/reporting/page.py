"""The report of a run: one self-contained HTML page."""

import base64
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from jaxmodels.cli import visible
from jaxmodels.runtime.paths import flatten
from jaxmodels.runtime.reporting import plots
from jaxmodels.runtime.reporting.progress import duration
from jaxmodels.runtime.runs import rundir

MARK = '<meta name="generator" content="jaxmodels report">'
"""Marks a page as ours, so that it may be overwritten."""
SAMPLES = 12
"""The most samples on a page, evenly spaced, the newest first."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; }
td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; font-variant-numeric: tabular-nums; }
td:first-child { color: #666; }
img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .8rem; }
details { margin: .5rem 0; }
"""


def page(run: Path) -> str:
    """The page of a run directory, of whatever it holds; nothing is loaded from elsewhere."""
    config, summary = (_object(run / name) for name in (rundir.CONFIG, "summary.json"))
    name = f"{config.get('arch', '?')}:{config.get('preset', '?')}"
    title = visible(f"{run.absolute().name}: {name}")
    parts = [
        *_section("Summary", [_table(_summary(run, config, summary))]),
        *_section("Loss", _plots(run, {"loss": plots.loss})),
        *_section("Samples", _samples(run / "samples")),
        *_section("Metrics", _plots(run, {"metrics": plots.all_metrics})),
        *_section("Parameters and gradients", _plots(run, {"stats": plots.stats})),
        *_section("Settings", _settings(config)),
        *_section("Environment", [_table(_flat(config.get("environment")))]),
    ]
    head = f'<meta charset="utf-8">{MARK}<title>{escape(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{escape(title)}</h1>\n" + "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _section(title: str, content: Any) -> Iterator[str]:
    """A heading and its content; nothing if there is no content."""
    inside = [part for part in content if part]
    if inside:
        yield f"<h2>{escape(title)}</h2>"
        yield from inside


def _summary(run: Path, config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Progress, losses and speed of the run."""
    found = {
        "architecture": f"{config.get('arch', '?')}:{config.get('preset', '?')}",
        "data": _flat(config.get("recipe")).get("data"),
        "ended": summary.get("reason"),
        "steps": summary and f"{summary.get('step')} of {summary.get('steps')}",
        "loss": summary.get("loss"),
        "validation loss": summary.get("valid_loss"),
        "best validation loss": summary.get("best_valid_loss"),
        "at step": summary.get("best_step"),
        "checkpoints": ", ".join(map(str, rundir.steps(run / "checkpoints"))),
        "tokens per second": summary.get("tokens_per_second"),
        "images per second": summary.get("images_per_second"),
        "MFU": _percent(summary.get("mfu")),
        "goodput": _percent(summary.get("goodput")),
    }
    spent = {f"time, {k}": duration(v) for k, v in _flat(summary.get("seconds")).items()}
    version = {"version of jaxmodels": config.get("version")}
    return {name: value for name, value in (found | spent | version).items() if value}


def _percent(value: Any) -> str | None:
    return f"{value:.1%}" if isinstance(value, float) else None


def _settings(config: dict[str, Any]) -> Iterator[str]:
    for part in ("model", "recipe", "data"):
        if values := _flat(config.get(part)):
            yield f"<details><summary>{part}</summary>{_table(values)}</details>"


def _samples(folder: Path) -> Iterator[str]:
    """The newest unfolded, the others folded; pictures before their text."""
    found = sorted(
        (path for path in folder.glob("*.txt") if path.stem.isdecimal()),
        key=lambda path: -int(path.stem),
    )
    for at, path in enumerate(found[i] for i in plots.evenly_spaced(len(found), SAMPLES)):
        picture = path.with_suffix(".png")
        inside = _image(picture.read_bytes(), "captioned images") if picture.is_file() else ""
        text = path.read_text(encoding="utf-8", errors="replace")
        inside += f"<pre>{escape(text)}</pre>"
        opened = "" if at else " open"
        yield f"<details{opened}><summary>step {path.stem}</summary>{inside}</details>"


def _plots(run: Path, functions: dict[str, Any]) -> Iterator[str]:
    for name, png in plots.pictures(run, functions):
        yield _image(png, name)


def _image(png: bytes, what: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<p><img alt="{escape(what)}" src="data:image/png;base64,{data}"></p>'


def _table(rows: dict[str, Any]) -> str:
    if not rows:
        return ""
    cells = (f"<tr><td>{escape(k)}</td><td>{escape(_format(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), "\n")


def _flat(value: Any) -> dict[str, Any]:
    """A nested object with dotted names; empty for anything else."""
    return flatten(value, ".") if isinstance(value, dict) else {}


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
