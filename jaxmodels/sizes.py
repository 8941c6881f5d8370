"""How large a model is, layer by layer, from shapes alone."""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

from jaxmodels.architecture import Architecture, ConfigView


def outline(package: Architecture, config: Any) -> Any:
    """An abstract model: shapes and dtypes in place of its arrays."""
    from flax import nnx

    return nnx.merge(*_traced(package.Model, config))


@lru_cache(32)
def _traced(model: Callable[..., Any], config: Any) -> Any:
    from flax import nnx

    from jaxmodels.layers.keys import keys

    return nnx.split(nnx.eval_shape(lambda: model(config, rngs=keys(default=0))))


def shapes(arch: str, config: Any) -> dict[str, Any]:
    """Path → shape and dtype of every parameter of a model, without allocating any.

    Each block has paths of its own, also where the model stacks them in one array (`SCANNED`).
    """
    return dict(_shapes(arch, config))


def parameter_shapes(arch: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Path → shape of every parameter, without allocating any."""
    return {path: tuple(leaf.shape) for path, leaf in _shapes(arch, config).items()}


@lru_cache(64)
def _shapes(arch: str, config: Any) -> dict[str, Any]:
    from jaxmodels import registry
    from jaxmodels.runtime.paths import params_of, unstack

    package = registry.arch(arch)
    return unstack(params_of(outline(package, config)), package.SCANNED)


def parameters(arch: str, config: Any) -> int:
    """The number of parameters of a model."""
    return sum(prod(leaf.shape) for leaf in _shapes(arch, config).values())


def vocab_used(config: Any) -> int:
    """The number of token ids that a model uses, without padding rows of the vocabulary; 0 for a
    model that reads no text."""
    view = ConfigView(config)
    return view.vocab if view.tokens is None else view.tokens


def by_layer(params: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each layer: layer, tensors, parameters and bytes."""
    from jaxmodels.runtime.paths import layer_of

    rows: dict[str, dict[str, Any]] = {}
    for path, leaf in params.items():
        layer = layer_of(path)
        row = rows.setdefault(layer, {"layer": layer, "tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += prod(leaf.shape)
        row["bytes"] += prod(leaf.shape) * leaf.dtype.itemsize
    return list(rows.values())


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of tensors, parameters and bytes."""
    return {name: sum(row[name] for row in rows) for name in ("tensors", "parameters", "bytes")}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows and their total as aligned text."""
    rows = [*rows, {"layer": "total", **total(rows)}]
    width = max(len(row["layer"]) for row in rows)
    head = f"{'layer':<{width}} {'tensors':>8} {'parameters':>14} {'bytes':>16}"
    lines = [
        f"{row['layer']:<{width}} {row['tensors']:>8,} {row['parameters']:>14,} {row['bytes']:>16,}"
        for row in rows
    ]
    return "\n".join([head, *lines])
