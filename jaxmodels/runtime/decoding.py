"""The compiled halves of generation: `prefill` reads a prompt, `decoder` draws tokens in chunks.

Prompts are padded to powers of two and the cache doubles in two steps, so few shapes are ever
compiled; only the last token of a prompt passes the head, most of a small model.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodels.architecture import ConfigView, ModelView
from jaxmodels.layers.sampling import Sampling, sample
from jaxmodels.runtime.paths import Arrays, GraphDef


class Static(NamedTuple):
    """The static arguments of the compiled functions. Hashable."""

    graphdef: GraphDef
    top_k: int | None
    banned: tuple[int, ...]
    chunk: int
    context: int


def cache_size(tokens: int, context: int) -> int:
    """Slots of a cache for this many tokens: a power of two or three quarters of one.

    Attention reads the whole cache, filled or not, so it grows with the text; doubling in two
    steps lets generations of all lengths share few compilations.
    """
    double = max(1 << (tokens - 1).bit_length(), 64)
    size = double // 4 * 3
    return min(size if tokens <= size else double, context)


@partial(jax.jit, static_argnames="size")
def grow(state: Any, *, size: int) -> Any:
    """The state to decode from, with a cache of `size` slots."""
    token, cache, drawn = state
    return token, cache.grown(size), drawn


def pad(prompt: np.ndarray, size: int) -> np.ndarray:
    """Pads to a power of two, so that prompts of many lengths share few compilations."""
    padded = min(max(1 << (prompt.shape[1] - 1).bit_length(), 16), size)
    return np.pad(prompt, ((0, 0), (0, padded - prompt.shape[1])))


@partial(jax.jit, static_argnums=0, static_argnames="size")
def prefill(
    fixed: Static,
    params: Arrays,
    model_state: Arrays,
    tokens: Any,
    length: Any,
    drawn: Any,
    images: Any,
    seed: Any,
    sampling: Sampling,
    *,
    size: int,
) -> Any:
    """The state to decode from: the first token, the cache before it, the number of tokens drawn.

    Padding is written into the cache after `length`, where no query attends before it is
    overwritten.
    """
    model = fixed.graphdef.merge(params, model_state)
    drawn = jnp.zeros((), jnp.int32) + drawn
    if ModelView(model).prefill is not None:
        seen = {} if images is None else {"images": images}
        logits, cache = model.prefill(tokens, length, size, **seen)
    else:
        x, cache = model.hidden(tokens, model.init_cache(tokens.shape[0], size))
        last = jax.lax.dynamic_slice_in_dim(x, length - 1, 1, axis=1)  # the head costs most
        logits = model.logits(last)[:, 0]
        cache = cache._replace(length=jnp.zeros((), jnp.int32) + length)
    number = _uniform(seed, jnp.arange(len(tokens)), drawn[None])[0]
    return _next_token(fixed, model, logits, number, sampling), cache, drawn + 1


def _decode_chunk(
    fixed: Static,
    params: Arrays,
    model_state: Arrays,
    state: Any,
    seed: Any,
    sampling: Sampling,
    n: Any,
) -> tuple[Any, jax.Array]:
    """Draws n ≤ chunk tokens for each row: the state after them, and int32 [b, chunk].

    n is not a constant of the program, so chunks of all lengths share one compilation.
    """
    model = fixed.graphdef.merge(params, model_state)
    step = ModelView(model).decode or model
    rows = len(state[0])
    numbers = _uniform(seed, jnp.arange(rows), state[2] + jnp.arange(fixed.chunk))

    def one(i: jax.Array, carry: Any) -> Any:
        (token, cache, drawn), tokens = carry
        logits, cache = step(token[:, None], cache)
        token = _next_token(fixed, model, logits[:, 0], numbers[i], sampling)
        return (token, cache, drawn + 1), tokens.at[:, i].set(token)

    return jax.lax.fori_loop(0, n, one, (state, jnp.zeros((rows, fixed.chunk), jnp.int32)))


# On a CPU, XLA by default packs the weights of each float32 product into blocks (YNNPACK), which
# does not pay for this few rows (`benchmarks/LOG.md`).
NO_YNNPACK_ROWS = range(8, 32)
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
_decode = jax.jit(_decode_chunk, static_argnums=0, donate_argnums=3)
_decode_uncut = jax.jit(
    _decode_chunk, static_argnums=0, donate_argnums=3, compiler_options=_OPTIONS
)


def decoder(params: Arrays, model_state: Arrays, rows: int) -> Callable[..., tuple[Any, jax.Array]]:
    """`_decode_chunk`, compiled for this many rows: (static, params, model_state, state, seed,
    sampling, n) → (state, int32 [b, chunk]).

    Only float32 products have the option.
    """
    kinds = {leaf.dtype.name for leaf in (*params.values(), *model_state.values())}
    uncut = (
        rows in NO_YNNPACK_ROWS and not kinds & {"bfloat16", "float16", "uint8"} and _has_option()
    )
    return _decode_uncut if uncut else _decode


@cache
def _has_option() -> bool:
    """Whether this XLA knows the option, which is experimental."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS)()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _next_token(
    fixed: Static, model: Any, logits: jax.Array, numbers: jax.Array, sampling: Sampling
) -> jax.Array:
    """The next token of each row, int32 [b]; never a banned one or padding."""
    banned = banned_mask(model, fixed.banned)
    return sample(logits, numbers, sampling._replace(top_k=fixed.top_k), banned)


def banned_mask(model: Any, banned: tuple[int, ...]) -> np.ndarray:
    """bool [v]: tokens that are never drawn, padding of the vocabulary included."""
    ids = np.arange(model.config.vocab)
    return np.isin(ids, banned) | (ids >= (ConfigView(model.config).tokens or len(ids)))


def _uniform(seed: Any, rows: jax.Array, steps: jax.Array) -> jax.Array:
    """Random numbers in [0, 1) [steps, rows], each from the seed, its row and its step alone.

    One for each token, and a chunk's at once: `jax.random.categorical` draws noise for every logit,
    more than half of a small model's time.
    """

    def number(step: jax.Array, row: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), step)
        return jax.random.uniform(key)

    return jax.vmap(jax.vmap(number, (None, 0)), (0, None))(steps, rows)
