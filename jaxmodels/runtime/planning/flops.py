"""Floating-point operations, counted from the shapes of a program's matrix products.

XLA's cost analysis counts the body of a loop once, so products are counted in the traced program:
exact for every architecture, without formulas to keep in step with the models.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import jax


class Product(NamedTuple):
    """The sizes of [batch, rows, inner] × [batch, inner, columns], done `times` times."""

    batch: int
    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def padded(self) -> int:
        """Operations of a matrix unit of 128 × 128, which computes narrower sides as if full."""
        tiles = [-(-side // 128) * 128 for side in (self.rows, self.inner, self.columns)]
        return 2 * self.batch * prod(tiles) * self.times

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each term."""
        return 2 * prod(self)


def products(function: Callable[..., Any], *args: Any) -> list[Product]:
    """The matrix products and convolutions of a function of these arguments (or their shapes).

    The body of a scan counts as often as it runs, that of a while loop once; of the branches of a
    condition the most expensive counts.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*args))


def of_jaxpr(traced: Any) -> list[Product]:
    """As `products`, for a traced program."""
    return list(_walk(traced.jaxpr, 1))


def in_kernels(traced: Any, platform: str) -> list[Product]:
    """The products inside of Pallas kernels, in the forms for a platform, over all devices.

    XLA's compilers know nothing of what a kernel costs.
    """
    return list(_kernels(traced.jaxpr, 1, platform))


def _kernels(jaxpr: Any, times: int, platform: str) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        times_inside = times * _times(name, params)
        if name == "pallas_call":
            yield from chain(*(_walk(inner, times_inside) for inner in _within(params)))
            continue
        inside = list(_within(params))
        if forms := params.get("branches_platforms"):
            known = [n for n, form in enumerate(forms) if form is not None and platform in form]
            inside = [inside[known[0] if known else forms.index(None)]]
        yield from chain(*(_kernels(inner, times_inside, platform) for inner in inside))


def total(found: list[Product]) -> int:
    """Operations of all products."""
    return sum(product.flops for product in found)


def _walk(jaxpr: Any, times: int) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            yield _product(equation, times)
        elif name == "conv_general_dilated":
            yield _convolution(equation, times)
        inside = [list(_walk(inner, times * _times(name, params))) for inner in _within(params)]
        yield from _branch(inside, params) if name == "cond" else chain(*inside)


def _branch(branches: list[list[Product]], params: dict[str, Any]) -> list[Product]:
    """The branch that counts: the default of platform-dependent branches, else the largest."""
    platforms = params.get("branches_platforms")
    return branches[platforms.index(None)] if platforms else max(branches, key=total)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often the body of an operation runs, over all devices."""
    if name == "scan":
        return int(params["length"])
    if name == "shard_map":  # the body is one device's share; JAX 0.12 renamed the parameter
        axes = params.get("newly_manual_axes") or params.get("manual_axes", ())
        return prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return prod(params["grid_mapping"].grid)
    return 1


def _within(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an operation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def _product(equation: Any, times: int) -> Product:
    left, right = (variable.aval.shape for variable in equation.invars)
    (inner, _), (batch, _) = equation.params["dimension_numbers"]
    shared, contracted = (prod(left[axis] for axis in axes) for axes in (batch, inner))
    rows = prod(left) // (shared * contracted)
    return Product(shared, rows, contracted, prod(right) // (shared * contracted), times)


def _convolution(equation: Any, times: int) -> Product:
    """A convolution as the product of its patches with its kernel."""
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    groups = equation.params["feature_group_count"]
    outward = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    inner = prod(kernel) // outward
    return Product(groups, prod(out) // outward, inner, outward // groups, times)
