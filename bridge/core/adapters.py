"""LoRA adapters that lie beside no weights, but have their base model elsewhere."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bridge.core.table import Pair
from bridge.core.tensors import Tensor


@dataclass(frozen=True)
class Base:
    """Where the model is that adapters change, and how strongly they do."""

    path: Path
    scale: float
    """The factor of A·B."""
    digest: str | None = None
    """sha256 of the manifest that it had when the adapters were saved; None if that is unknown."""


@dataclass(frozen=True)
class Adapters:
    """Adapters of a model, in float32 or as they are stored."""

    base: Base
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """Our path of a kernel, or a format's name of it → A [inputs, rank], B [rank, outputs]."""

    def named(self, pairs: Iterable[Pair]) -> "Adapters":
        """The same by the names that the pairs give to our paths."""
        names = {pair.ours: pair.theirs for pair in pairs}
        return replace(self, pairs={names[path]: pair for path, pair in self.pairs.items()})

    def merged(self, path: str, kernel: Tensor) -> Tensor:
        """The kernel + scale · A B, unread, in float32 at least."""
        a, b = self.pairs[path]
        dtype = np.promote_types(kernel.dtype, np.float32)
        return Tensor(
            kernel.name, kernel.shape, dtype, _Sum(kernel.read, a.read, b.read, self.base.scale)
        )


@dataclass(frozen=True)
class _Sum:
    kernel: Callable[[], np.ndarray]
    a: Callable[[], np.ndarray]
    b: Callable[[], np.ndarray]
    scale: float

    def __call__(self) -> np.ndarray:
        kernel = self.kernel()
        dtype = np.promote_types(kernel.dtype, np.float32)
        product = self.a().astype(dtype) @ self.b().astype(dtype)
        change = dtype.type(self.scale) * product.reshape(kernel.shape)
        found: np.ndarray = kernel.astype(dtype) + change
        return found
