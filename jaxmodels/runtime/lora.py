"""LoRA (Hu et al. 2021, arXiv:2106.09685): W + alpha/rank · A B, where only A and B are trained.

An adapter is a pair of parameters beside its kernel's path: `…/kernel_lora_a` [inputs, rank] and
`…/kernel_lora_b` [rank, outputs], for stacked blocks with the block as a first axis. They join
their kernels when the model is put together (`Adapted.merge`), so models know nothing of them;
`layers/low_rank.py` says how layers compute with them. The gradient is taken with respect to the
adapters alone. The frozen parameters are arguments of the step like all others, but have neither
gradients nor optimiser state, and no checkpoint holds them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodels.architecture import Architecture
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.low_rank import with_adapters
from jaxmodels.recipe import Lora
from jaxmodels.runtime.paths import Arrays, GraphDef, matrices, pattern

A, B = "_lora_a", "_lora_b"


@dataclass(frozen=True)
class Adapted(GraphDef):
    """The graphdef of a model whose parameters include adapters."""

    scale: float
    """The factor of A·B."""

    __hash__ = GraphDef.__hash__

    @classmethod
    def of(cls, graphdef: GraphDef, scale: float) -> "Adapted":
        """The graphdef of the same model with adapters."""
        own = {each.name: getattr(graphdef, each.name) for each in fields(graphdef)}
        return cls(**own, scale=scale)

    def weights(self, params: Arrays) -> Arrays:
        """The model's own parameters, with the adapters added to their kernels."""
        return merged(params, self.scale)

    def merge(self, params: Arrays, rest: Arrays) -> Any:
        """The module that holds these arrays; kernels with adapters are `layers.low_rank`'s."""
        model = super().merge(params, rest)
        kernels = [path.removesuffix(A) for path in params if path.endswith(A)]
        # The factor goes to B, the smaller side of most; there is none in the layers.
        pairs = {path: (params[path + A], self.scale * params[path + B]) for path in kernels}
        return with_adapters(model, pairs)


def is_adapter(path: str) -> bool:
    """Whether a parameter is part of an adapter."""
    return path.endswith((A, B))


def merged(params: Arrays, scale: float) -> Arrays:
    """Path → kernel + scale · A B, in the kernel's dtype; without the adapters."""
    result = {path: leaf for path, leaf in params.items() if not is_adapter(path)}
    for path, a in params.items():
        if path.endswith(A):
            kernel = path.removesuffix(A)
            change = scale * (a @ params[kernel + B])
            result[kernel] = result[kernel] + change.reshape(result[kernel].shape)
    return result


def targets(package: Architecture, lora: Lora, shapes: Arrays) -> list[str]:
    """Paths of the kernels that get adapters, by `lora.targets` or the package's `LORA`.

    Args:
        package: the architecture.
        lora: the setting.
        shapes: path → array (or shape) of every parameter; of a stack of blocks, a pattern may also
            name its first block, as in blocks/0/attn/q/kernel.

    Raises:
        Problem: (usage) no kernel matches, or the rank is more than any of them can have.
    """
    wanted = [pattern(text) for text in lora.targets or package.LORA]
    kernels = [path for path, leaf in shapes.items() if matrices(path, leaf.shape) is not None]
    found = [p for p in kernels if any(w.fullmatch(name) for w in wanted for name in _names(p))]
    if not found:
        given = ", ".join(lora.targets or package.LORA)
        raise Problem(
            f"--lora: no matrix of {package.name} has a path like {given}",
            why=f"its matrices are {', '.join(_kinds(kernels))}",
            fix="give a pattern of such paths, in which * stands for anything: "
            f"--lora rank={lora.rank},targets={_kinds(kernels)[0]}",
            exit_code=USAGE,
        )
    sides = [matrices(path, shapes[path].shape) for path in found]
    if lora.rank > (most := max(min(side[1:]) for side in sides if side)):
        raise Problem(
            f"--lora: a rank of {lora.rank:,} is more than these matrices have",
            why=f"the smaller side of the largest is {most:,}",
            fix="ranks of 4 to 64 are usual: --lora rank=8",
            exit_code=USAGE,
        )
    return found


def _names(path: str) -> tuple[str, ...]:
    """A path, and for a stack of blocks that of its first block."""
    return path, path.replace("blocks/", "blocks/0/", 1)


def _kinds(paths: Iterable[str]) -> list[str]:
    """The distinct paths, with * for the numbers of blocks."""
    parts = (["*" if part.isdecimal() else part for part in path.split("/")] for path in paths)
    return list(dict.fromkeys("/".join(each) for each in parts))


def draw(package: Architecture, lora: Lora, params: Arrays, key: jax.Array) -> Arrays:
    """Fresh adapters, float32: A uniform in ±1/√inputs (PEFT's), B zero, so that nothing changes
    yet."""
    drawn = {}
    for number, path in enumerate(targets(package, lora, params)):
        shape = matrices(path, params[path].shape)
        assert shape is not None
        stack, inputs, outputs = shape
        bound, one = inputs**-0.5, jax.random.fold_in(key, number)
        drawn[path + A] = jax.random.uniform(
            one, (*stack, inputs, lora.rank), jnp.float32, -bound, bound
        )
        drawn[path + B] = jnp.zeros((*stack, lora.rank, outputs), jnp.float32)
    return drawn


def stored(package: Architecture, params: Arrays) -> Arrays:
    """The parameters that a checkpoint holds: of a model with adapters these, and what `commit`
    writes; else all."""
    if not any(map(is_adapter, params)):
        return params
    return {p: x for p, x in params.items() if is_adapter(p) or p in package.COMMITTED}
