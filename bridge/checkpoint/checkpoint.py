"""A checkpoint that fits a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.core.adapters import Adapters
from bridge.core.moments import Moments
from bridge.core.packing import Packed
from bridge.core.table import Pair, Shape
from bridge.core.tensors import Tensor
from data_pipelines.tokenizers import Tokenizer


@dataclass
class Checkpoint:
    """A checkpoint of any format as a model: every tensor under our paths, no values read yet."""

    path: Path
    format: str
    """As in `jaxmodels convert --to`; "torch" for a bare state dict."""
    arch: str
    preset: str | None
    config: Any
    """The model's Config."""
    assumed: dict[str, Any]
    """Fields of the config that the files do not say."""
    pairs: list[Pair]
    """The map between our paths and the names in the files."""
    tensors: dict[str, Tensor]
    """Our path → tensor, in our layout: parameters, and state that goes with them."""
    state: frozenset[str]
    """Those of our paths that are state (`bridge/core/state.py`)."""
    tokenizer: Tokenizer | None
    """The one beside the tensors, or else the convention's."""
    origin: dict[str, Any]
    """Step and metrics of a training run; see `RawCheckpoint`."""
    notes: list[str]
    carried: dict[str, bytes] = field(default_factory=dict)
    """The files that the architecture names as `CARRIED`: name → content."""
    unsaid: frozenset[str] = frozenset()
    """Assumed fields that only the model of which this is a copy has; see `bind`."""
    quantised: frozenset[str] = frozenset()
    """Our paths whose tensors are Q8_0 in the file, in blocks along the last axis of their layout,
    and read as float32."""
    adapters: Adapters | None = None
    """The LoRA adapters that `tensors` include, where they are stored apart from the model."""
    packed: dict[str, Packed] = field(default_factory=dict)
    """Our path → what the file holds of a parameter in few bits, which is read as float32."""
    moments: Callable[[], Moments | None] = lambda: None
    """AdamW's state under our paths, unread; None where the files have none. Raises Problem
    (mismatch) when it is that of another model."""

    def shapes(self) -> dict[str, Shape]:
        """Our path → shape of every parameter."""
        return {p: tensor.shape for p, tensor in self.tensors.items() if p not in self.state}

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(tensor.size for p, tensor in self.tensors.items() if p not in self.state)


def preset_of(package: Any, config: Any) -> str | None:
    """The preset that equals a config, if one does."""
    return next((name for name, preset in package.PRESETS.items() if preset == config), None)
