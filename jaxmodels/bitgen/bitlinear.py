"""Linear layers of BitNet b1.58: ternary weights, 8-bit activations (Ma et al. 2024,
arXiv:2402.17764).

    γ = mean |W|,  T = clip(round(W / γ), −1, 1)                    for the whole matrix
    s = 127 / max |x|,  X = clip(round(x · s), −128, 127)           for each token
    y = (X · T) · γ / s

x is first normalised by the layer's own RMS norm. Rounding is half to even, and gradients pass
straight through both roundings. X and T are integers, exact in bfloat16 too. The numbers are those
of transformers' `AutoBitLinear` in its online mode, except that a matrix that already is T · γ
keeps its γ (the mean, over its zeros too, would shrink it), so that quantising is idempotent.

`pack` makes the model for inference, with four weights a byte in the layout of transformers' BitNet
integration, where `packed` is called `weight`: byte [r, j] holds rows r, R + r, 2R + r and 3R + r
of the outputs, the first in the lowest bits; R is a quarter of their number.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8, UInt8

from jaxmodels.layers.low_rank import parts
from jaxmodels.layers.norm import layer_norm
from jaxmodels.layers.precision import accum_dtype, to_float32

# Lower bound of γ and of max |x|, as in transformers.
LEAST = 1e-5
# Relative error of a sum of equal numbers.
ROUNDING = 1e-5
# Weights of two bits in a byte.
A_BYTE = 4


class Packed(nnx.Variable):
    """Ternary weights, four a byte, and their scale: no gradient reaches them."""


def ternary(kernel: Float[Array, "d f"]) -> tuple[Float[Array, "d f"], Float[Array, ""]]:
    """T, of −1, 0 and 1 in the kernel's dtype, and γ, float32: the kernel is about T · γ."""
    values = to_float32(kernel)
    sizes = jnp.abs(values)
    most, others = sizes.max(), (sizes > 0).sum()
    rounded = sizes.sum() >= (1 - ROUNDING) * most * others  # all but zeros are as large
    scale = 1 / jnp.maximum(jnp.where(rounded, most, sizes.mean()), LEAST)
    return jnp.clip(jnp.round(values * scale), -1, 1).astype(kernel.dtype), 1 / scale


def levels(x: Float[Array, "*b d"]) -> tuple[Float[Array, "*b d"], Float[Array, "*b 1"]]:
    """X, whole numbers of 8 bits in the dtype of x, and 1/s, float32: x is about X · (1/s)."""
    values = to_float32(x)
    most = jnp.abs(values).max(axis=-1, keepdims=True)
    scale = 127 / jnp.maximum(most, LEAST)
    return jnp.clip(jnp.round(values * scale), -128, 127).astype(x.dtype), 1 / scale


@jax.custom_vjp
def product(x: Float[Array, "*b d"], kernel: Float[Array, "d f"]) -> Float[Array, "*b f"]:
    """The quantised product of x and the kernel, in the dtype of x."""
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, Any]:
    (rounded, step), (signs, gamma) = levels(x), ternary(kernel)
    y = _matmul(rounded, signs) * (gamma * step)
    kept = rounded.astype(jnp.int8), step, signs.astype(jnp.int8), gamma
    return y.astype(x.dtype), kept


def _backward(kept: Any, of_y: Array) -> tuple[Array, Array]:
    of_x, columns, rows = _sides(kept, of_y)
    return of_x, _matmul(columns.T, rows).astype(of_y.dtype)


def _sides(kept: Any, of_y: Array) -> tuple[Array, Array, Array]:
    """The gradient of x; and X [n d] and rows [n f], whose product is the kernel's gradient."""
    rounded, step, signs, gamma = kept
    dtype = of_y.dtype
    of_x = _matmul(of_y, signs.T.astype(dtype)) * gamma
    rows = (of_y * step).astype(dtype).reshape(-1, of_y.shape[-1])
    columns = rounded.astype(dtype).reshape(-1, rounded.shape[-1])
    return of_x.astype(dtype), columns, rows


def _matmul(a: Array, b: Array) -> Array:
    """a · b, accumulated in float32; in float64 for float64 inputs."""
    return jnp.matmul(a, b, preferred_element_type=accum_dtype(a.dtype))


product.defvjp(_forward, _backward)


@jax.custom_vjp
def adapted_product(
    x: Float[Array, "*b d"],
    base: Float[Array, "d f"],
    a: Float[Array, "d r"],
    b: Float[Array, "r f"],
) -> Float[Array, "*b f"]:
    """`product` of x and base + a b, without a gradient of their sum: `base` is frozen."""
    return product(x, base + a @ b)


def _adapted_forward(x: Array, base: Array, a: Array, b: Array) -> tuple[Array, Any]:
    y, kept = _forward(x, base + a @ b)
    return y, (kept, a, b)


def _adapted_backward(kept: Any, of_y: Array) -> tuple[Array, None, Array, Array]:
    """As `_backward`, whose gradient of the kernel, columnsᵀ · rows, is left a product."""
    inner, a, b = kept
    of_x, columns, rows = _sides(inner, of_y)
    of_a = _matmul(columns.T, _matmul(rows, b.T).astype(rows.dtype))
    of_b = _matmul(_matmul(columns, a).astype(rows.dtype).T, rows)
    return of_x, None, of_a.astype(a.dtype), of_b.astype(b.dtype)


adapted_product.defvjp(_adapted_forward, _adapted_backward)


class BitLinear(nnx.Module):
    """RMS norm with a scale, then the quantised product; no bias, as in BitNet."""

    def __init__(self, inward: int, outward: int, *, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(inward, epsilon=1e-6, rngs=rngs)
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (inward, outward)))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        """[… d] → [… f] in the parameters' dtype; the norm is computed in float32."""
        kernel, *adapter = parts(self.kernel)
        x = layer_norm(self.norm, x)
        return adapted_product(x, kernel, *adapter) if adapter else product(x, kernel)


class PackedLinear(nnx.Module):
    """A BitLinear for inference, with a quarter of a byte for each weight."""

    def __init__(self, linear: BitLinear):
        signs, gamma = ternary(linear.kernel[...])
        self.outward = signs.shape[1]
        self.norm = linear.norm
        self.packed = Packed(pack_rows(signs.T.astype(jnp.int8)))
        self.scale = Packed(gamma)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b f"]:
        """[… d] → [… f], the same as the BitLinear's."""
        x = layer_norm(self.norm, x)
        rounded, step = levels(x)
        signs = unpack_rows(self.packed[...], self.outward).astype(x.dtype)
        y = jnp.einsum("...d,fd->...f", rounded, signs, preferred_element_type=accum_dtype(x.dtype))
        return (y * (self.scale[...] * step)).astype(x.dtype)


def pack_rows(signs: Int8[Array, "f d"]) -> UInt8[Array, "r d"]:
    """−1, 0, 1 for each output and input → bytes; r = ⌈f/4⌉, missing rows read as −1."""
    rows = -(-signs.shape[0] // A_BYTE)
    codes = jnp.pad((signs + 1).astype(jnp.uint8), ((0, A_BYTE * rows - len(signs)), (0, 0)))
    parts = (
        codes.reshape(A_BYTE, rows, -1) << (2 * jnp.arange(A_BYTE, dtype=jnp.uint8))[:, None, None]
    )
    return parts.sum(axis=0, dtype=jnp.uint8)


def unpack_rows(packed: UInt8[Array, "r d"], outward: int) -> Int8[Array, "f d"]:
    """The inverse of `pack_rows`, for this number of outputs."""
    shifts = (2 * jnp.arange(A_BYTE, dtype=jnp.uint8))[:, None, None]
    codes = (packed[None] >> shifts) & 3
    return codes.reshape(-1, packed.shape[1])[:outward].astype(jnp.int8) - 1


def pack(model: Any) -> Any:
    """A copy of a model whose BitLinears are packed, for inference.

    The other parameters are shared with the model. Outputs agree to float32 rounding.
    """
    copy = nnx.merge(*nnx.split(model))
    for _, node in list(nnx.iter_graph(copy)):
        if not isinstance(node, nnx.Module):
            continue
        for name, child in list(vars(node).items()):
            if isinstance(child, BitLinear):
                setattr(node, name, PackedLinear(child))
    return copy


def ternary_size(model: Any) -> tuple[int, int]:
    """(bytes, weights) of the ternary weights that a model holds, with their scales.

    A model for training has 4 bytes for each weight, a packed one a quarter of a byte, and 4 bytes
    for each matrix.
    """
    size = count = 0
    for _, node in nnx.iter_graph(model):
        if isinstance(node, BitLinear):
            size += node.kernel[...].nbytes
            count += node.kernel[...].size
        elif isinstance(node, PackedLinear):
            size += node.packed[...].nbytes + node.scale[...].nbytes
            count += node.outward * node.packed[...].shape[1]
    return size, count


def exported(model: Any) -> dict[str, Any]:
    """Path → arrays of every ternary layer, as transformers' packed BitNet files hold them.

    `PATH.weight` is uint8 [⌈f/4⌉, d] and `PATH.weight_scale` float32 [1], the reciprocal 1/γ that
    transformers' `BitLinear` divides by; `PATH.rms_norm.weight` float32 [d].

    Args:
        model: packed or not.
    """
    arrays: dict[str, Any] = {}
    for path, node in nnx.iter_graph(pack(model)):
        if isinstance(node, PackedLinear):
            name = ".".join(str(part) for part in path)
            assert node.norm.scale is not None
            arrays[f"{name}.weight"] = node.packed[...]
            arrays[f"{name}.weight_scale"] = 1 / node.scale[...].reshape(1)
            arrays[f"{name}.rms_norm.weight"] = node.norm.scale[...]
    return arrays
