"""The PyTorch side of an architecture: its twin, found by the architecture's name."""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

import jaxmodels
from bridge.core.tensors import DTYPES, Tensor
from bridge.core.transformers_class import TransformersClass


def twin(arch: str) -> ModuleType:
    """The package of an architecture's PyTorch side: `bridge.torch.<architecture>`, or the module
    that an architecture from outside names in `TWIN`."""
    return import_module(_name(arch))


def twins() -> Iterator[tuple[str, ModuleType]]:
    """Every registered architecture that has a twin, and its twin."""
    for arch in jaxmodels.ARCHS:
        try:
            yield arch, twin(arch)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{_name(arch)}.".startswith(f"{error.name}."):
                raise


def transformers_classes() -> Iterator[tuple[str, TransformersClass]]:
    """Every registered architecture whose twin is a class of transformers, and that class."""
    for arch, side in twins():
        if found := transformers_class(side):
            yield arch, found


def transformers_class(side: ModuleType) -> TransformersClass | None:
    """The class of transformers that a twin declares."""
    return getattr(side, "TRANSFORMERS", None)


def _name(arch: str) -> str:
    name: str = getattr(jaxmodels.arch(arch), "TWIN", f"bridge.torch.{arch}")
    return name


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
