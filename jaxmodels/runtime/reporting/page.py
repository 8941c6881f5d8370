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
from jaxmodels.runtime.reporting.meanings import STATS, meaning
from jaxmodels.runtime.reporting.progress import duration
from jaxmodels.runtime.runs import rundir

MARK = '<meta name="generator" content="jaxmodels report">'
"""Marks a page as ours, so that it may be overwritten."""
DPI = 150
"""Resolution of curves: sharp on a phone, and when enlarged."""
SAMPLES = 12
"""The most samples on a page, evenly spaced, the newest first."""

_STYLE = """
:root { color-scheme: light dark; --text: #222; --faint: #666; --line: #ddd; --back: #fff;
  --box: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --faint: #999; --line: #444; --back: #181818; --box: #222; }
  img.plot { filter: invert(.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 1rem auto; padding: 0 1rem;
  color: var(--text); background: var(--back); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; }
td { padding: .15rem 1.5rem .15rem 0; vertical-align: top; font-variant-numeric: tabular-nums; }
td:first-child { color: var(--faint); overflow-wrap: normal; }
img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; background: var(--box); padding: .8rem; }
details { margin: .5rem 0; }
.curves { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; }
figure label { cursor: zoom-in; display: block; }
figure input { position: absolute; opacity: 0; }
figure input:checked + img { position: fixed; inset: 0; z-index: 1; width: 100%; height: 100%;
  object-fit: contain; background: #fff; cursor: zoom-out; }
figcaption { font-size: .9rem; color: var(--faint); }
figcaption b { color: var(--text); }
.key { columns: 14rem; list-style: none; padding: 0; font-size: .9rem; }
.key span { display: inline-block; width: 1.2em; height: .7em; margin-right: .5em; }
"""


def page(run: Path) -> str:
    """The page of a run directory, of whatever it holds; nothing is loaded from elsewhere."""
    config, summary = (_object(run / name) for name in (rundir.CONFIG, "summary.json"))
    name = f"{config.get('arch', '?')}:{config.get('preset', '?')}"
    title = visible(f"{run.absolute().name}: {name}")
    parts = [
        *_section("Summary", [_table(_summary(run, config, summary))]),
        *_section("Curves", _curves(run, plots.curves(run), config)),
        *_section("Samples", _samples(run / "samples")),
        *_section("Parameters and gradients", _layers(run)),
        *_section("Settings", _settings(config)),
        *_section("Environment", [_table(_flat(config.get("environment")))]),
    ]
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{view}{MARK}<title>{escape(title)}</title><style>{_STYLE}</style>"
    head = f'<meta charset="utf-8">{head}'
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
        **{
            f"validation loss, {source}": loss
            for source, loss in _items(summary.get("valid_loss_by_source"))
        },
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
        inside = (
            f"<p>{_image(picture.read_bytes(), 'captioned images')}</p>"
            if picture.is_file()
            else ""
        )
        text = path.read_text(encoding="utf-8", errors="replace")
        inside += f"<pre>{escape(text)}</pre>"
        opened = "" if at else " open"
        yield f"<details{opened}><summary>step {path.stem}</summary>{inside}</details>"


def _curves(run: Path, curves: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """Each curve by itself, with what it means; a tap enlarges it."""
    figures = [
        _figure(png, name, meaning(name, config)) for name, png in plots.pictures(run, curves, DPI)
    ]
    if figures:
        yield f'<div class="curves">{"".join(figures)}</div>'


def _layers(run: Path) -> Iterator[str]:
    """The statistics of layers, and one key to the lines of all."""
    curves, colours = plots.layer_curves(run)
    figures = [_figure(png, name, STATS[name]) for name, png in plots.pictures(run, curves, DPI)]
    if figures:
        yield f'<div class="curves">{"".join(figures)}</div>'
        rows = (
            f'<li><span style="background: {colour}"></span>{escape(name)}</li>'
            for name, colour in colours.items()
        )
        yield f'<ul class="key">{"".join(rows)}</ul>'


def _figure(png: bytes, name: str, text: str) -> str:
    return (
        f'<figure><label><input type="checkbox" aria-label="enlarge">{_image(png, name, "plot")}'
        f"</label><figcaption><b>{escape(name)}</b> {escape(text)}</figcaption></figure>"
    )


def _image(png: bytes, what: str, kind: str = "picture") -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{escape(what)}" src="data:image/png;base64,{data}">'


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


def _items(value: Any) -> Any:
    return value.items() if isinstance(value, dict) else ()


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
