"""Parameters that a model lacks and its PyTorch class always has: zeros there, nothing here.

transformers' GPT-2 has biases in every layer; a model without them is the same model with biases
of zero. A package of `bridge/torch` says so by `whole(config)`, the config that its class has.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bridge.core import table
from bridge.core.tensors import Tensor
from bridge.core.twins import twin
from jaxmodels.sizes import parameter_shapes


def lacking(arch: str, config: Any) -> dict[str, table.Shape]:
    """Our path → shape of the parameters that only the PyTorch class has."""
    side = twin(arch)
    if side.whole is None:
        return {}
    own = parameter_shapes(arch, config)
    every = parameter_shapes(arch, side.whole(config))
    return {path: shape for path, shape in every.items() if path not in own}


def filled(arch: str, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors (our path → tensor) with zeros for those that only the PyTorch class has."""
    dtype = next(iter(tensors.values())).dtype
    return {
        **tensors,
        **{path: _zeros(path, shape, dtype) for path, shape in lacking(arch, config).items()},
    }


def with_unread(
    package: Any,
    pairs: list[table.Pair],
    shapes: Mapping[str, table.Shape],
    found: dict[str, Tensor],
) -> list[str]:
    """Adds zeros to a checkpoint (their name → tensor) for what it lacks of parameters that no
    output depends on; says so.

    Args:
        package: the model's package; its layout's UNREAD are the paths of such parameters.
        pairs: the map between our paths and the names in the checkpoint.
        shapes: our path → shape.
        found: the checkpoint.
    """
    lacks = [p for p in pairs if p.ours in package.UNREAD and p.theirs not in found]
    if not found:
        return []
    dtype = next(iter(found.values())).dtype
    for pair in lacks:
        found[pair.theirs] = _zeros(pair.theirs, pair.their_shape(shapes[pair.ours]), dtype)
    return [f"{pair.theirs} is missing, on which no output depends: zeros" for pair in lacks]


def _zeros(path: str, shape: table.Shape, dtype: np.dtype) -> Tensor:
    return Tensor(path, shape, dtype, lambda: np.zeros(shape, dtype))


def unfilled(
    arch: str, rows: table.Rows, config: Any, found: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """The way back: drops what `filled` added from a checkpoint (their name → tensor).

    If one of them is no longer zero, since PyTorch trained it, the model is now one that has
    them all: its config is returned instead.
    """
    added = {pair.theirs for pair in table.pairs(rows, lacking(arch, config))} & found.keys()
    if any(found[name].read().any() for name in added):
        whole = twin(arch).whole
        return whole(config) if whole else config, found
    return config, {name: tensor for name, tensor in found.items() if name not in added}
