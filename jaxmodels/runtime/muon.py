"""Muon: steps along the nearest orthogonal matrix of each kernel's momentum (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; optax), and Adam for all other parameters.

The steps are those of `optax.contrib.scale_by_muon`. Around it, kernels are found by their paths;
stacked blocks and heads with axes of their own become single matrices; and small matrices of one
shape are batched: a few large products instead of many small ones. `optax.contrib.muon` would take
them one by one, with a learning rate and weight decay of its own.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxmodels.recipe import Optim
from jaxmodels.runtime.paths import Arrays, matrices, pattern

_SMALL = 2**18  # elements; products of larger kernels saturate a processor alone


def scale_by_muon(optim: Optim) -> optax.GradientTransformation:
    """Gradients → updates at a learning rate of 1, both path → array.

    The state is optax's for the kernels, whose `mu` is path → momentum, and Adam's for the rest.
    """
    skipped = [pattern(text) for text in optim.muon_skip]
    adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
    muon = contrib.scale_by_muon(
        weight_dimension_numbers=lambda groups: dict.fromkeys(
            groups, contrib.MuonDimensionNumbers(1, 2)
        )
    )

    def partition(tree: Arrays) -> tuple[Arrays, Arrays]:
        others = {
            path: leaf
            for path, leaf in tree.items()
            if not _is_kernel(path, leaf.shape) or any(skip.fullmatch(path) for skip in skipped)
        }
        return {path: leaf for path, leaf in tree.items() if path not in others}, others

    def init(params: Arrays) -> Any:
        kernels, others = partition(params)
        return muon.init(kernels), adam.init(others)

    def update(grads: Arrays, state: Any, params: Any = None) -> tuple[Arrays, Any]:
        kernels, others = partition(grads)
        steps, first = muon.update(
            _to_groups(kernels), state[0]._replace(mu=_to_groups(state[0].mu))
        )
        # The elements of an orthogonal matrix have an rms of 1 / √(longer side).
        steps = {name: optim.muon_rms * max(x.shape[1:]) ** 0.5 * x for name, x in steps.items()}
        rest, second = adam.update(others, state[1])
        first = first._replace(mu=_from_groups(first.mu, kernels))
        return _from_groups(steps, kernels) | rest, (first, second)

    return optax.GradientTransformation(init, update)


def _is_kernel(path: str, shape: tuple[int, ...]) -> bool:
    return path.endswith("/kernel") and matrices(path, shape) is not None


def _matrices(path: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A kernel as matrices: their number (several in a stack of blocks), inputs, outputs."""
    found = matrices(path, shape)
    assert found is not None  # by `_is_kernel`
    leading, inputs, outputs = found
    return prod(leading), inputs, outputs


def _group(path: str, shape: tuple[int, ...]) -> str:
    """The group of a kernel: by shape, or its own path for a large one."""
    _, *sides = _matrices(path, shape)
    return f"{sides[0]} x {sides[1]}" if prod(sides) <= _SMALL else path


def _to_groups(kernels: Arrays) -> Arrays:
    """Group → its matrices [matrices, inputs, outputs]."""
    groups: dict[str, list[jax.Array]] = {}
    for path, kernel in kernels.items():
        matrices = kernel.reshape(_matrices(path, kernel.shape))
        groups.setdefault(_group(path, kernel.shape), []).append(matrices)
    return {name: jnp.concatenate(group) for name, group in groups.items()}


def _from_groups(groups: Arrays, kernels: Arrays) -> Arrays:
    """The inverse of `_to_groups`: path → array in the kernel's shape."""
    found, taken = {}, dict.fromkeys(groups, 0)
    for path, kernel in kernels.items():
        name, (count, *_) = _group(path, kernel.shape), _matrices(path, kernel.shape)
        found[path] = groups[name][taken[name] : taken[name] + count].reshape(kernel.shape)
        taken[name] += count
    return found
