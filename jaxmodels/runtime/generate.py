"""The one generation loop: prefill the prompt, then decode in compiled pieces."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodels.layers.sampling import Sampling, sample
from jaxmodels.runtime.paths import Arrays, Skeleton, split


def generate(
    model: Any,
    prompt: np.ndarray,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    banned: tuple[int, ...] = (),
    chunk: int = 32,
) -> Iterator[np.ndarray]:
    """Continues each row of the prompt, yielding int32 [b, n ≤ chunk] as soon as it is there.

    A row's tokens depend on the seed, its index and its prompt only, not on how many rows
    there are or on `chunk`.

    Args:
        model: a module with `init_cache(batch, size)` and
            `model(tokens, cache) -> (logits, cache)`.
        prompt: int [b, t] with t ≥ 1. Of a prompt longer than the context, only the end is read.
        max_new_tokens: how many tokens each row gets.
        sampling: temperature and filters; greedy when the temperature is None.
        seed: of the random draws.
        banned: token ids that are never drawn.
        chunk: tokens decoded in one compiled call.
    """
    skeleton, params, rest = split(model)
    vocab = model.config.vocab
    forbidden = jnp.zeros(vocab, bool).at[jnp.asarray(banned, jnp.int32)].set(True)
    rows = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.arange(len(prompt)))
    cache = model.init_cache(len(prompt), _rounded(prompt.shape[1] + max_new_tokens))
    prompt = np.asarray(prompt, np.int32)[:, -cache.size :]
    logits, cache = _prefill(
        skeleton, params, rest, _pad(prompt, cache.size), cache, prompt.shape[1]
    )
    carry = (logits, cache, jnp.zeros((), jnp.int32))
    for done in range(0, max_new_tokens, chunk):
        carry, tokens = _decode(skeleton, params, rest, carry, rows, sampling, forbidden, n=chunk)
        yield np.asarray(tokens)[:, : max_new_tokens - done]


def _rounded(tokens: int, step: int = 128) -> int:
    """Room for so many tokens: attention reads all of the cache, filled or not.

    Rounded up, so that generations of many lengths share few compilations.
    """
    return -(-tokens // step) * step


def _pad(prompt: np.ndarray, size: int) -> jax.Array:
    """Pads to a power of two, so that prompts of many lengths share few compilations."""
    padded = min(max(1 << (prompt.shape[1] - 1).bit_length(), 16), size)
    return jnp.asarray(np.pad(prompt, ((0, 0), (0, padded - prompt.shape[1]))))


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _prefill(
    skeleton: Skeleton,
    params: Arrays,
    rest: Arrays,
    tokens: jax.Array,
    cache: Any,
    length: jax.Array | int,
) -> tuple[jax.Array, Any]:
    """Logits after token `length − 1`, and the cache rewound to `length` tokens.

    What the padding wrote lies after `length`, where no query looks before it is overwritten.
    """
    logits, cache = skeleton.merge(params, rest)(tokens, cache)
    last = jax.lax.dynamic_index_in_dim(logits, length - 1, axis=1, keepdims=False)
    return last, cache._replace(length=jnp.asarray(length, jnp.int32))


@partial(jax.jit, static_argnums=0, static_argnames="n", donate_argnums=3)
def _decode(
    skeleton: Skeleton,
    params: Arrays,
    rest: Arrays,
    carry: Any,
    rows: jax.Array,
    sampling: Sampling,
    banned: jax.Array,
    *,
    n: int,
) -> tuple[Any, jax.Array]:
    """Draws n tokens for each row; the carry is (next logits, cache, tokens drawn so far)."""
    model = skeleton.merge(params, rest)

    def one(carry: Any, _: None) -> tuple[Any, jax.Array]:
        logits, cache, drawn = carry
        keys = jax.vmap(partial(jax.random.fold_in, data=drawn))(rows)
        token = sample(logits, keys, sampling, banned)
        logits, cache = model(token[:, None], cache)
        return (logits[:, 0], cache, drawn + 1), token

    carry, tokens = jax.lax.scan(one, carry, None, length=n)
    return carry, tokens.T


def text_sampler(tokenizer: Any, prompt: str, seed: int, length: int = 200) -> Callable[[Any], str]:
    """A sampler that continues `prompt` by `length` tokens at temperature 0.8."""
    ids = np.asarray([tokenizer.encode(prompt)], np.int32)
    banned = tuple(tokenizer.special_ids)

    def sampler(model: Any) -> str:
        pieces = generate(model, ids, length, Sampling(0.8), seed, banned, chunk=length)
        return prompt + tokenizer.decode(np.concatenate([piece[0] for piece in pieces]))

    return sampler
