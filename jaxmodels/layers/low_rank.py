"""A kernel with a LoRA adapter (Hu et al. 2021, arXiv:2106.09685), computed without their sum.

`x W + (x A) B` instead of `x (W + A B)`: the backward pass then makes no gradient of W's size, the
sum takes no memory, and in bfloat16 a small A B is not rounded away beside W.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float


class LowRank(nnx.Module):
    """W, A and B in the place of a kernel; `kernel[...]` is W + A B.

    Layers multiply by `parts`. Whatever else reads a kernel sees the sum, whose gradient is as
    large as W.
    """

    def __init__(
        self, base: Float[Array, "*w"], a: Float[Array, "*n i r"], b: Float[Array, "*n r o"]
    ):
        self.base, self.a, self.b = nnx.Param(base), nnx.Param(a), nnx.Param(b)

    @property
    def shape(self) -> tuple[int, ...]:
        """W's."""
        return self.base[...].shape

    def __getitem__(self, key: Any) -> Array:
        """W + A B, or a part of it."""
        base = self.base[...]
        return (base + (self.a[...] @ self.b[...]).reshape(base.shape))[key]


def parts(kernel: Any) -> tuple[Array, ...]:
    """A kernel's array; with an adapter W, A and B."""
    if isinstance(kernel, LowRank):
        return kernel.base[...], kernel.a[...], kernel.b[...]
    return (kernel[...],)


def with_adapters(model: Any, adapters: dict[str, tuple[Array, Array]]) -> Any:
    """The model itself, its kernels at these paths replaced by `LowRank`.

    Args:
        model: changed in place.
        adapters: path of a kernel → A and B.
    """
    for path, (a, b) in adapters.items():
        *parents, name = path.split("/")
        module = model
        for part in parents:
            module = module[int(part)] if part.isdecimal() else getattr(module, part)
        setattr(module, name, LowRank(getattr(module, name)[...], a, b))
    return model


def without_adapters(model: Any) -> Any:
    """A copy of the model that has the sums for kernels."""
    copy = nnx.merge(*nnx.split(model))
    for _, node in list(nnx.iter_graph(copy)):
        if isinstance(node, nnx.Module):
            for name, child in list(vars(node).items()):
                if isinstance(child, LowRank):
                    setattr(node, name, nnx.Param(child[...]))
    return copy
