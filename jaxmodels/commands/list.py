"""`jaxmodels list`: architectures and presets, with their sizes."""

from dataclasses import dataclass
from typing import Any

import jaxmodels
from jaxmodels.cli import emit, parse


@dataclass(frozen=True)
class List:
    """Print every preset with its number of parameters."""

    json: bool = False
    """Print a JSON list on standard output."""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    options = parse(List, argv, "list")
    rows = presets()
    if options.json:
        emit(rows)
        return 0
    for row in rows:
        print(f"{row['name']:<24} {row['parameters']:>14,} parameters   context {row['context']:,}")
    return 0


def presets() -> list[dict[str, Any]]:
    """One row a preset: name, arch, preset, parameters (from shapes alone) and context."""
    return [
        {
            "name": f"{arch}:{preset}",
            "arch": arch,
            "preset": preset,
            "parameters": parameter_count(arch, config),
            "context": config.context,
        }
        for arch in jaxmodels.ARCHS
        for preset, config in jaxmodels.arch(arch).PRESETS.items()
    ]


def parameter_count(arch: str, config: Any) -> int:
    """Number of trained numbers of a model, without allocating any."""
    from math import prod

    from flax import nnx

    from jaxmodels.runtime.paths import params_of

    package = jaxmodels.arch(arch)
    model = nnx.eval_shape(lambda: package.Model(config, rngs=nnx.Rngs(0)))
    return sum(prod(leaf.shape) for leaf in params_of(model).values())
