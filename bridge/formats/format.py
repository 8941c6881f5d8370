"""What a checkpoint format is: one record that says all about it.

A module of `bridge/formats` ends in the record of its format, and the registry
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
    """Where to; it is empty."""
    tensors: dict[str, Tensor]
    """The format's name → tensor, unread, in the format's order."""
    config: Any
    """The model's Config."""
    description: dict[str, Any]
    """Architecture, preset and every field of the Config, for a config.json of ours."""
    origin: dict[str, Any]
    """What is known of the training; see `RawCheckpoint`."""
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
    """Whether the format's kernels are [inputs, outputs], as ours."""
    digests: dict[str, Fingerprint] = field(default_factory=dict)
    """Name → {"dtype", "shape", digest} of the tensors that were written."""

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of a tensor that is written now, of the model or of `moments`."""
        array = tensor.read()
        if self.tensors.get(tensor.name) is tensor:
            self.digests[tensor.name] = fingerprint(array)
            self.progress(tensor)
        return array


class Quantisation(NamedTuple):
    """Numbers of a few bits that a format has, as a further `--dtype`."""

    dtype: str
    """The choice."""
    fits: Callable[[tuple[int, ...]], bool]
    """Whether a tensor of this shape, in the format's layout, is quantised."""
    rounded: Callable[[Tensor, Callable[[str, float], None]], Tensor]
    """The tensor, in the format's layout, as it will be read again: float32, unread. What is
    called with its name and rounding error is the second argument."""
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
    """A checkpoint format. Recognising looks at content, never at a name alone, and never raises.

    Every member but the name has a default that means: it does not, or it needs nothing.
    """

    name: str
    """As in `jaxmodels convert --to`. Several records may share one: a run is an `orbax`."""
    what: str = ""
    """What a user may give, for the message that nothing known was found."""

    # Reading
    is_file: Callable[[Path], bool] | None = None
    open_file: Callable[[Path], RawCheckpoint] | None = None
    is_folder: Callable[[Path], bool] | None = None
    open_folder: Callable[[Path], RawCheckpoint] | None = None
    interpret: Callable[[RawCheckpoint, Path], RawCheckpoint] | None = None
    """What the names of tensors, or the files in the folder around them, say about a checkpoint
    that another record opened; the checkpoint itself where that is nothing."""
    name_in: Callable[[Path], str] | None = None
    """The name for one folder, where the record stands for several formats."""
    endings: tuple[str, ...] = ()
    """File names that end so lead people to expect the format."""
    readers: int = 1
    """How many tensors are read at once to check them."""

    # Writing
    write: Callable[[Output], None] | None = None
    """Writes everything but the tokeniser's own file and the manifest."""
    pytorch: bool = False
    """A folder that PyTorch opens: safetensors in the names of the architecture's PyTorch class,
    in shards, with all that belongs to a model directory (`bridge/conversion/model_directory`)."""
    packed: bool = False
    """Matrices are written in few bits (`bridge/core/packing.py`)."""
    arch: str = ""
    """The only architecture that can be written so; "" if all can."""
    tables: tuple[str, ...] = ("UPSTREAM",)
    """The tables of weight names, of which the first that the architecture has is used."""
    file: Callable[[dict[str, Any]], str] = lambda origin: ""
    """The name of the one file that holds all tensors, by the origin; "" if there are many."""
    filled: bool = False
    """Biases that the model lacks are written as zeros (`bridge/checkpoint/zeros.py`)."""
    needs: str = ""
    """The optional package (`jaxmodels/extras.py`) that writes it; "" if none."""
    run: Callable[[Path, Any], float | None] | None = None
    """Of a format that is not read back: `run(folder, model)` opens what was written where it will
    be used, and gives the largest difference of its outputs from those of our model (None without
    one)."""
    dtypes: tuple[str, ...] = ()
    """The values of `--dtype` that it has, besides its quantisation; () for all."""
    check: Callable[[Any, Path], None] = _anything
    """`check(config, path)`, before anything is written: raises Problem where the format's own
    code cannot compute the model, which comes from `path`."""
    notes: Callable[[Any, dict[str, Any], Tokenizer | None], list[str]] = _no_notes
    """`notes(config, origin, tokenizer)`: what the format's own code will do differently."""
    moments: Callable[[Moments | None, dict[str, Any], Path], Moments | None] | None = _required
    """`moments(moments, origin, path)`: the optimiser's state to write, None where it is only a
    count, which is always written; raises Problem. None: the format holds parameters only."""
    stays_float32: Callable[[str, Tensor], bool] = _never
    """Whether a parameter (our path, our layout) is float32 whatever `--dtype` says."""
    quantisation: Quantisation | None = None
    ternary: bool = False
    """Whether matrices of ternary layers are written as their values −1, 0 and 1."""
    adapters: Callable[[Adapters], list[Tensor]] | None = None
    """Of a format that holds only a model's LoRA adapters: its tensors, A and B of each in turn."""

    @property
    def is_target(self) -> bool:
        """Whether `convert` writes it."""
        return self.pytorch or self.write is not None
