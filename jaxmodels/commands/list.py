"""`jaxmodels list`: architectures and presets, with their sizes."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

import jaxmodels
from jaxmodels import sizes
from jaxmodels.architecture import ConfigView
from jaxmodels.cli import emit, parse


@dataclass(frozen=True)
class List:
    """Print every preset with its number of parameters, or one preset layer by layer."""

    preset: Positional[Annotated[str | None, arg(metavar="[ARCH:PRESET]")]] = None
    """The preset to show: its sizes, and the parameters and bytes of each of its layers."""
    json: bool = False
    """Print a JSON list on standard output; of one preset, an object."""


def main(argv: list[str]) -> int:
    """Runs the command."""
    options = parse(List, argv, "list")
    if options.preset is not None:
        row = one(options.preset)
        emit(row) if options.json else _show(row)
        return 0
    rows = presets()
    if options.json:
        emit(rows)
        return 0
    for row in rows:
        context = f"   context {row['context']:,}" if row["context"] else ""
        print(f"{row['name']:<24} {row['parameters']:>14,} parameters{context}")
    return 0


def presets() -> list[dict[str, Any]]:
    """One row for each preset: name, arch, preset, parameters (from shapes alone) and context (None
    for a model that reads no text)."""
    return [
        {
            "name": f"{arch}:{preset}",
            "arch": arch,
            "preset": preset,
            "parameters": parameter_count(arch, config),
            "context": ConfigView(config).context,
        }
        for arch in jaxmodels.ARCHS
        for preset, config in jaxmodels.arch(arch).PRESETS.items()
    ]


def parameter_count(arch: str, config: Any) -> int:
    """Number of parameters of a model, without allocating any."""
    count: int = sizes.total(sizes.by_layer(sizes.shapes(arch, config)))["parameters"]
    return count


def one(spec: str) -> dict[str, Any]:
    """A preset's row, with its bytes (in float32, as trained) and its `layers`.

    Raises:
        Problem: (usage) there is no such preset.
    """
    arch, size, config = jaxmodels.preset(spec)
    layers = sizes.by_layer(sizes.shapes(arch, config))
    return {
        "name": spec,
        "arch": arch,
        "preset": size,
        "context": ConfigView(config).context,
        **sizes.total(layers),
        "config": asdict(config),
        "layers": layers,
    }


def _plain(value: Any) -> str:
    """A setting for people: on and off, and a dash where there is none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)


def _show(row: dict[str, Any]) -> None:
    print("  ".join(f"{name} {_plain(value)}" for name, value in row["config"].items()))
    print(sizes.table(row["layers"]))
