"""The PyTorch side of an architecture, a package `bridge/torch/<architecture>`, found by name."""

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

import jaxmodels
from bridge.core.tensors import DTYPES, Tensor


def twin(arch: str) -> ModuleType:
    """The package of an architecture's PyTorch side."""
    return import_module(f"bridge.torch.{arch}")


def tied(arch: str) -> tuple[tuple[str, str], ...]:
    """(name on PyTorch's side, our path whose values it repeats) of an architecture."""
    return getattr(jaxmodels.arch(arch), "TIED", ())


def to_torch(tensor: Tensor) -> Any:
    """Reads a tensor into torch; bfloat16, which numpy lacks, passes as bits."""
    import torch

    array = np.array(tensor.read(), order="C")  # torch wants memory that it may write
    if tensor.dtype == DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
