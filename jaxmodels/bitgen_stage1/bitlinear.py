"""The decoder's linear layer: ternary weights and 8-bit activations, in evaluation only.

Source: seed 004. Unlike BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764), this is post-training
quantisation: training is in full precision, without a straight-through estimator.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.bitgen_stage1.state import Buffer
from jaxmodels.layers.precision import to_float32


def ternary(weights: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, ""]]:
    """Weights as −1, 0 and 1, and their scale γ = mean |w|; |w| ≤ γ/2 becomes 0."""
    scale = jnp.maximum(jnp.abs(weights).mean(), 1e-5)
    return jnp.sign(weights) * (jnp.abs(weights) > scale / 2), scale


def eight_bits(x: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, ""]]:
    """Activations as integers from −128 to 127, and their scale max |x| / 127.

    The maximum is over the whole array, so a row's result depends on the other rows (a quirk of
    the seed).
    """
    scale = jnp.maximum(jnp.abs(x).max(), 1e-8) / 127
    return jnp.clip(jnp.round(x / scale), -128, 127), scale


class BitLinear(nnx.Module):
    """x · kernel + bias, optionally quantised."""

    def __init__(self, fan_in: int, fan_out: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal((2 / fan_in) ** 0.5)
        self.kernel = nnx.Param(init(rngs.params(), (fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros(fan_out))
        # The seed registers these buffers but never uses them: in its checkpoints they are ones.
        self.weight_scale = Buffer(jnp.ones(1))
        self.input_scale = Buffer(jnp.ones(1))

    def __call__(self, x: Float[Array, "*b i"], *, quantised: bool) -> Float[Array, "*b o"]:
        """[…, in] → […, out]; full precision in training, ternary by 8 bits in evaluation."""
        kernel, bias = self.kernel[...], self.bias[...]
        if not quantised:
            return x.astype(kernel.dtype) @ kernel + bias
        weights, weight_scale = ternary(to_float32(kernel))
        values, scale = eight_bits(x.astype(weights.dtype))
        # Integers below 2^24 are exact in float32, as in the seed.
        product = jnp.matmul(values, weights, precision=jax.lax.Precision.HIGHEST)
        return product * weight_scale * scale + bias
