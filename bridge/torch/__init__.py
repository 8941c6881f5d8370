"""The PyTorch side: a package for each architecture, and loading into its module.

A package `bridge/torch/<architecture>` says `FILES` (what travels with a model directory),
`AUTO_CLASS`, `keys(config)` (transformers' part of config.json), `build(config)` (the module),
and how the two sides are compared: `example(config)` (random inputs), `jax_outputs(model,
inputs)`, `torch_outputs(module, inputs)`; `whole(config)` where its class has parameters that a
model may lack; `unlike(config)` where it may compute otherwise, and says so; `BESIDE`, further JSON
files of a model directory. Code that lies beside a checkpoint is never run: the
module is always our own class, or transformers'.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bridge.tensors import DTYPES, Tensor


def twin(arch: str) -> ModuleType:
    """The package of an architecture's PyTorch side."""
    return import_module(f"bridge.torch.{arch}")


def load(path: str | Path, arch: str | None = None, config: Mapping[str, Any] | None = None) -> Any:
    """The checkpoint as a `torch.nn.Module` in eval mode.

    Args:
        path: anything that `bridge.load` takes.
        arch: the architecture, if the files do not say it.
        config: fields that the files cannot say, such as {"heads": 4}.

    Returns:
        the module, in the dtype of the file (float32 if the file mixes several).

    Raises:
        Problem: as `bridge.load`; every tensor must be there, and no other.
    """
    from bridge.sources import open_source

    return module_of(open_source(path, arch, config))


def module_of(source: Any) -> Any:
    """The `torch.nn.Module` of an opened source; see `load`."""
    import torch

    state = state_dict(source.arch, source.config, source.tensors)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) > 1:
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        module = twin(source.arch).build(source.config)
    module.load_state_dict(state, strict=True, assign=True)
    if tied(source.arch):
        module.tie_weights()  # the same values became two parameters
    return module.eval()


def state_dict(arch: str, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name → torch tensor of all that the module of an architecture holds.

    Args:
        arch: the architecture.
        config: the model's Config.
        tensors: our path → tensor, in our layout.
    """
    import jaxmodels
    from bridge import table
    from bridge.zeros import filled

    tensors = filled(arch, config, tensors)
    pairs = table.pairs(jaxmodels.arch(arch).WEIGHTS, tensors)
    state = {pair.ours: to_torch(pair.export(tensors[pair.ours])) for pair in pairs}
    named = {pair.theirs: state[pair.ours] for pair in pairs}
    return named | {name: state[path] for name, path in tied(arch)}


def tied(arch: str) -> tuple[tuple[str, str], ...]:
    """(name on PyTorch's side, our path whose values it repeats) of an architecture."""
    import jaxmodels

    return getattr(jaxmodels.arch(arch), "TIED", ())


def to_torch(tensor: Tensor) -> Any:
    """Reads a tensor into torch; bfloat16, which numpy lacks, passes as bits."""
    import torch

    array = np.array(tensor.read(), order="C")  # torch wants memory that it may write
    if tensor.dtype == DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
