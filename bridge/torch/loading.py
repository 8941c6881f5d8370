"""Any checkpoint as a PyTorch module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jaxmodels
from bridge.checkpoint.opening import open_checkpoint
from bridge.checkpoint.zeros import filled
from bridge.core import table
from bridge.core.packing import Packed, renamed
from bridge.core.tensors import Tensor
from bridge.core.twins import tied, to_torch, twin
from jaxmodels.runtime.platform import release_memory


def load(path: str | Path, arch: str | None = None, config: Mapping[str, Any] | None = None) -> Any:
    """The checkpoint as a `torch.nn.Module` in eval mode.

    Args:
        path: anything that `bridge.load` takes.
        arch: the architecture, if the files do not determine it.
        config: fields that are not in the files, such as {"heads": 4}.

    Returns:
        the module, in the dtype of the file (float32 if the file has several).

    Raises:
        Problem: as `bridge.load`; all tensors must be there, and no others.
    """
    return module_of(open_checkpoint(path, arch, config))


def module_of(source: Any) -> Any:
    """The `torch.nn.Module` of an opened source; see `load`."""

    state = state_dict(source.arch, source.config, source.tensors, source.packed)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) > 1:
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    with _parameters_without_values():
        side = twin(source.arch)
        build = side.build_packed if source.packed else side.build
        assert build is not None  # what is packed was written for it
        module = build(source.config)
    module.load_state_dict(state, strict=True, assign=True)
    if tied(source.arch):
        module.tie_weights()  # the same values became two parameters
    release_memory()
    return module.eval()


@contextmanager
def _parameters_without_values() -> Iterator[None]:
    """Within its block, parameters of new modules take no memory: their values are loaded later.

    `torch.device("meta")` would do the same to buffers, of which some are in no state dict: they
    would never get their values (the frequencies of Llama's rotation).
    """
    import torch

    kind: Any = torch.nn.Module
    register = kind.register_parameter

    def empty(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and parameter.device.type != "meta":  # else tied to another
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    kind.register_parameter = empty
    try:
        yield
    finally:
        kind.register_parameter = register


def state_dict(
    arch: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    packed: Mapping[str, Packed] = MappingProxyType({}),
) -> dict[str, Any]:
    """Name → torch tensor of all that the module of an architecture holds.

    Args:
        arch: the architecture.
        config: the model's Config.
        tensors: our path → tensor, in our layout.
        packed: our path → matrix of those that stay in few bits.
    """

    tensors = filled(arch, config, tensors)
    pairs = table.pairs(jaxmodels.arch(arch).WEIGHTS, tensors)
    few = [
        each
        for pair in pairs
        if pair.ours in packed
        for each in renamed(packed[pair.ours], pair.theirs).parts
    ]
    pairs = [pair for pair in pairs if pair.ours not in packed]
    state = {pair.ours: to_torch(pair.export(tensors[pair.ours])) for pair in pairs}
    named = {pair.theirs: state[pair.ours] for pair in pairs}
    named |= {tensor.name: to_torch(tensor) for tensor in few}
    return named | {name: state[path] for name, path in tied(arch)}
