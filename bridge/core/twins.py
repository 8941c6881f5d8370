"""The PyTorch side of an architecture, its twin: a package such as `bridge/torch/charlm`.

A twin exports the members of `Twin`, and those of `OptionalTwin` that it needs. Code beside a
checkpoint is never run: the module is always our own class, or transformers'. The twin of an
architecture from outside is the module that its package names as `TWIN`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

import jaxmodels
from bridge.core.tensors import DTYPES, Tensor
from bridge.core.transformers_class import TransformersClass
from jaxmodels.architecture import View, exported, members, problems
from jaxmodels.errors import USAGE, Problem
from jaxmodels.extras import EXTRAS, missing


class Twin(Protocol):
    """What every twin exports."""

    AUTO_CLASS: str
    """The class of transformers that loads a model directory: "AutoModelForCausalLM"."""

    keys: Callable[[Any], dict[str, Any]]
    """`keys(config)`: transformers' keys of config.json for our Config; raises Problem (mismatch)
    where its class cannot hold such a model."""
    build: Callable[[Any], Any]
    """`build(config)`: the `torch.nn.Module` of these sizes, its parameters without values."""
    example: Callable[[Any], Any]
    """`example(config)`: random inputs to compare both sides on, the same at every call."""
    jax_outputs: Callable[[Any, Any], np.ndarray]
    """`jax_outputs(model, inputs)`: what our model makes of them."""
    torch_outputs: Callable[[Any, Any], np.ndarray]
    """`torch_outputs(module, inputs)`: what the module makes of them."""


class OptionalTwin(Protocol):
    """What a twin may export, with the defaults."""

    LIKE: str = ""
    """A module whose members stand for those that the twin lacks: "bridge.torch.language"."""
    TRANSFORMERS: TransformersClass | None = None
    """Where the class is transformers' own: its config.json as a table, which `keys` and `build`
    follow from, and by which its folders are read and written."""
    FILES: tuple[Path, ...] = ()
    """Modelling files that travel with a model directory, where transformers has no class."""
    beside: Callable[[Any, bool], Mapping[str, Any]] = staticmethod(lambda config, text: {})
    """`beside(config, text)`: further JSON files of a model directory, name → value; `text` is
    whether it has a tokeniser."""
    TOKENIZER: Mapping[str, Any] = {}
    """Keys that tokenizer_config.json must have."""
    usage: Callable[[Any, bool], str] = staticmethod(lambda config, text: "")
    """`usage(config, text)`: Markdown for the model card, with snippets that run with the folder
    alone: PATH stands for the folder."""
    build_packed: Callable[[Any], Any] | None = None
    """`build_packed(config)`: as `build`, with the layers of a packed file. Needed for those."""
    ONNX: str = ""
    """The module that builds its ONNX graphs (`bridge/onnx`): "bridge.onnx.charlm"."""
    given: Callable[[Any, Any], Any] | None = None
    """`given(config, ids)`: the ids of a text as inputs. Needed for `--text`."""
    jax_forward: Callable[[Any, Any], Any] | None = None
    """`jax_forward(model, inputs)`, differentiable. Needed, with the next, for `--gradients`."""
    torch_forward: Callable[[Any, Any], Any] | None = None
    whole: Callable[[Any], Any] | None = None
    """`whole(config)`: the Config whose parameters the class always has, where a model may lack
    some (`bridge/checkpoint/zeros.py`)."""
    unlike: Callable[[Any], str] = staticmethod(lambda config: "")
    """`unlike(config)`: what the class computes otherwise than our model; "" if nothing."""


class AnyTwin(View, Twin, OptionalTwin):
    """A twin, with defaults for the optional members that it lacks."""

    module: str
    """Its full name, for `import`."""

    @classmethod
    def of(cls, side: ModuleType) -> "AnyTwin":
        """The view of a twin's module."""
        view = cast(Any, cls)(_completed(side))  # what the protocols ask for, the module has
        view.module = side.__name__
        return cast(AnyTwin, view)


def twin(arch: str) -> AnyTwin:
    """The twin of an architecture.

    Raises:
        Problem: (usage) as `jaxmodels.arch`; the architecture has no twin, or one that cannot be
            used.
    """
    if (name := _twin_module(arch)) is None:
        raise Problem(
            f"{arch} has no PyTorch side",
            why=f"{jaxmodels.arch(arch).module} exports no TWIN, the module that would be it",
            fix="use --to orbax",
            exit_code=USAGE,
        )
    return _opened(arch, name)


def twins() -> Iterator[tuple[str, AnyTwin]]:
    """Every architecture that has a twin, and its twin. One from outside that cannot be used is
    passed over: `twin` says what is wrong with it."""
    for arch in jaxmodels.ARCHS:
        with suppress(Problem):
            if name := _twin_module(arch):
                yield arch, _opened(arch, name)


def twin_files() -> list[Path]:
    """The modelling files of all architectures."""
    return [file for _, side in twins() for file in side.FILES]


def transformers_classes() -> Iterator[tuple[str, TransformersClass]]:
    """Every architecture whose twin is a class of transformers' own, and that class."""
    for arch, side in twins():
        if side.TRANSFORMERS is not None:
            yield arch, side.TRANSFORMERS


def complaints(side: ModuleType) -> list[str]:
    """What is missing or misspelt in a twin: a sentence each."""
    return problems(exported(_completed(side)), members(Twin), members(Twin, OptionalTwin))


def _completed(side: ModuleType) -> ModuleType:
    """The twin with the members that it takes from the module that it is `LIKE`."""
    if not (like := getattr(side, "LIKE", "")):
        return side
    both = ModuleType(side.__name__)
    vars(both).update(vars(import_module(like)) | vars(side))
    return both


def _twin_module(arch: str) -> str | None:
    if named := jaxmodels.arch(arch).TWIN:
        return named
    ours = jaxmodels.arch(arch).module.startswith("jaxmodels.")
    return f"bridge.torch.{arch}" if ours else None


@cache
def _opened(arch: str, name: str) -> AnyTwin:
    try:
        side = import_module(name)
    except ImportError as error:
        if error.name in EXTRAS:
            raise missing(error.name, f"the PyTorch side of {arch}") from error
        raise Problem(
            f"the PyTorch side of {arch} cannot be imported",
            where=name,
            why=str(error),
            fix="install what it needs, or correct TWIN of the architecture's package",
            exit_code=USAGE,
        ) from error
    if wrong := complaints(side):
        raise Problem(
            f"the PyTorch side of {arch} is incomplete",
            where=name,
            why="\n".join(wrong),
            fix="`bridge/core/twins.py` says what it exports",
            exit_code=USAGE,
        )
    return AnyTwin.of(side)


def tied(arch: str) -> tuple[tuple[str, str], ...]:
    """(name on PyTorch's side, our path whose values it repeats) of an architecture."""
    return jaxmodels.arch(arch).TIED


def to_torch(tensor: Tensor) -> Any:
    """Reads a tensor into torch."""
    return as_torch(tensor.read())


def as_torch(values: np.ndarray) -> Any:
    """A copy for torch; bfloat16, which numpy lacks, passes as bits."""
    import torch

    array = np.array(values, order="C")  # torch wants memory that it may write
    if array.dtype == DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
