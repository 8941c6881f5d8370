"""`Format`: one record with everything about a checkpoint format.

Each module of `bridge/formats` ends in the record of its format, and the registry
(`bridge/formats/__init__.py`) lists them. Nothing else names formats.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bridge.core.adapters import Adapters
from bridge.core.moments import Moments, required
from bridge.core.tensors import Fingerprint, Tensor, fingerprint
from bridge.formats.raw import RawCheckpoint
from data_pipelines.tokenizers import Tokenizer


@dataclass
class Output:
    """A model to be written, under the names and in the layout of a format."""

    folder: Path
    """The folder to write into; it is empty."""
    tensors: dict[str, Tensor]
    """The format's name → tensor, unread, in the format's order."""
    config: Any
    """The model's Config."""
    description: dict[str, Any]
    """Architecture, preset and every field of the Config, for a config.json of ours."""
    origin: dict[str, Any]
    """About the training; see `RawCheckpoint`."""
    tokenizer: Tokenizer | None
    moments: Moments | None
    """AdamW's state under the format's names."""
    quantised: frozenset[str]
    """Names of the tensors to be written in the format's `quantisation`."""
    progress: Callable[[Tensor], None]
    """To be called after each tensor."""
    adapters: Adapters | None = None
    """LoRA adapters of the model, by the format's names of the weights that they change."""
    inputs_first: bool = True
    """Whether the format's kernels are [inputs, outputs], like ours."""
    digests: dict[str, Fingerprint] = field(default_factory=dict)
    """Name → {"dtype", "shape", digest} of the tensors that were written."""

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of a tensor, of the model or of `moments`, to be written now."""
        array = tensor.read()
        if self.tensors.get(tensor.name) is tensor:
            self.digests[tensor.name] = fingerprint(array)
            self.progress(tensor)
        return array


class Quantisation(NamedTuple):
    """A format's quantised dtype, as a further value of `--dtype`."""

    dtype: str
    """The choice."""
    fits: Callable[[tuple[int, ...]], bool]
    """Whether a tensor of this shape, in the format's layout, is quantised."""
    rounded: Callable[[Tensor, Callable[[str, float], None]], Tensor]
    """(tensor, report) → the tensor in the format's layout as it will be read back: float32,
    unread. `report` is called with its name and rounding error."""
    stored_bytes: Callable[[tuple[int, ...]], int]


def _anything(config: Any, where: Path) -> None:
    pass


def _no_notes(config: Any, origin: dict[str, Any], tokenizer: Tokenizer | None) -> list[str]:
    return []


def _never(path: str, tensor: Tensor) -> bool:
    return False


def _required(moments: Moments | None, origin: dict[str, Any], where: Path) -> Moments | None:
    return required(moments, where)


@dataclass(frozen=True)
class Format:
    """A checkpoint format. Formats are recognised by content, never by name alone, without raising.

    All members but the name are optional.
    """

    name: str
    """As in `jaxmodels convert --to`. Records may share a name: a run is an `orbax`, too."""
    what: str = ""
    """What a user may give, listed in the error if a path is not recognised."""

    # Reading
    is_file: Callable[[Path], bool] | None = None
    open_file: Callable[[Path], RawCheckpoint] | None = None
    is_folder: Callable[[Path], bool] | None = None
    open_folder: Callable[[Path], RawCheckpoint] | None = None
    interpret: Callable[[RawCheckpoint, Path], RawCheckpoint] | None = None
    """Interprets a checkpoint that another record opened, by its names of tensors or the files in
    its folder; returns it unchanged if it is not of this format."""
    name_in: Callable[[Path], str] | None = None
    """The name of a folder's format, if the record covers several."""
    endings: tuple[str, ...] = ()
    """Extensions from which users expect the format."""
    readers: int = 1
    """How many tensors are read at once to check them."""

    # Writing
    write: Callable[[Output], None] | None = None
    """Writes everything but the tokeniser's own file and the manifest."""
    pytorch: bool = False
    """A folder that PyTorch opens: safetensors in the names of the architecture's PyTorch class,
    in shards, with all that belongs to a model directory (`bridge/conversion/model_directory`)."""
    packed: bool = False
    """Matrices are written in 2 or 8 bits (`bridge/core/packing.py`)."""
    arch: str = ""
    """The only architecture that can be written; "" if all can."""
    tables: tuple[str, ...] = ("UPSTREAM",)
    """Tables of weight names; the first one that the architecture has is used."""
    file: Callable[[dict[str, Any]], str] = lambda origin: ""
    """The name of the file with all tensors, given the origin; "" if there are several files."""
    filled: bool = False
    """Biases that the model lacks are written as zeros (`bridge/checkpoint/zeros.py`)."""
    needs: str = ""
    """The optional package (`jaxmodels/extras.py`) that writes it; "" if none."""
    run: Callable[[Path, Any], float | None] | None = None
    """For a format that is not read back: `run(folder, model)` opens the result in the runtime that
    it is for, and returns the largest difference of its outputs from our model's (None without a
    model)."""
    dtypes: tuple[str, ...] = ()
    """Supported values of `--dtype`, besides `quantisation`; () means all."""
    check: Callable[[Any, Path], None] = _anything
    """`check(config, path)`, called before anything is written: raises Problem if the format's own
    code cannot compute the model from `path`."""
    notes: Callable[[Any, dict[str, Any], Tokenizer | None], list[str]] = _no_notes
    """`notes(config, origin, tokenizer)`: what the format's own code will do differently."""
    moments: Callable[[Moments | None, dict[str, Any], Path], Moments | None] | None = _required
    """`moments(moments, origin, path)`: the optimiser's state to write (None if it is only a count,
    which is always written); raises Problem. None: the format holds parameters only."""
    stays_float32: Callable[[str, Tensor], bool] = _never
    """Whether a parameter (our path, our layout) stays float32 under any `--dtype`."""
    quantisation: Quantisation | None = None
    ternary: bool = False
    """Whether matrices of ternary layers are written as their values −1, 0 and 1."""
    adapters: Callable[[Adapters], list[Tensor]] | None = None
    """Of a format that holds only a model's LoRA adapters: its tensors, A and B of each in turn."""

    @property
    def is_target(self) -> bool:
        """Whether `convert` writes it."""
        return self.pytorch or self.write is not None
