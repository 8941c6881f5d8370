"""The one generation loop: prefill the prompt, then decode in compiled pieces."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodels.architecture import ConfigView, ModelView
from jaxmodels.errors import UNVERIFIED, USAGE, Problem, within
from jaxmodels.layers.sampling import NOTHING, Sampling, sample
from jaxmodels.runtime.paths import Arrays, GraphDef, split
from jaxmodels.runtime.sharding import fetch


def generate(
    model: Any,
    prompt: np.ndarray,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    banned: tuple[int, ...] = (),
    chunk: int = 32,
    end: int | None = None,
    images: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Continues each row of the prompt, yielding int32 [b, n ≤ chunk] as soon as it is there: the
    first token alone, then pieces.

    A row's tokens depend on the seed, its index and its prompt only, not on how many rows
    there are or on `chunk`.

    A model whose positions are relative (`Model.relative`) goes on for ever: in a full cache
    the newest token takes the place of the oldest. Another has no position beyond its context:
    when that is full, the last half of it is read again as a new prompt.

    Args:
        model: a module with `config.context`, `init_cache(batch, size)`,
            `model(tokens, cache) -> (logits, cache)` and its two halves `hidden(tokens, cache) ->
            (x, cache)` and `logits(x)`; or `prefill(tokens, length, size) ->
            (logits, cache)` where it reads a prompt in another way, `decode(tokens, cache) ->
            (logits, cache)` where it decodes in another way than it is called. Ids from
            `config.tokens` on, where the config has it, are padding of the vocabulary and never
            drawn.
        prompt: int [b, t] with t ≥ 1. Of a prompt longer than the context, only the end is read.
            With images it may be empty.
        max_new_tokens: how many tokens each row gets.
        sampling: temperature and filters; greedy when the temperature is None or next to 0.
        seed: of the random draws.
        banned: token ids that are never drawn.
        chunk: tokens decoded in one compiled call.
        end: a token that ends a row: once every row has drawn it, no further piece is yielded.
            What follows it in a row is for the caller to cut off.
        images: float32 [b, h, w, 3] in [0, 1], what each row is written about; for a model whose
            `prefill` takes `images`. Prompt and new tokens must fit the context: an image is looked
            at once.

    Raises:
        Problem: (usage) an option is out of its range, or every token is banned; (verification
            failed) the model gives no number for any token that may be drawn.
    """
    _check(sampling)
    if _banned(model, banned).all():
        raise Problem(
            "there is no token that may be drawn",
            why=f"all {model.config.vocab} are banned, or padding of the vocabulary",
            fix="ban fewer",
            exit_code=USAGE,
        )
    graphdef, params, model_state = split(model)
    fixed = Fixed(graphdef, sampling.top_k, banned, chunk, model.config.context)
    sampling = sampling._replace(top_k=None)
    stretch = partial(_stretch, fixed, params, model_state, sampling, seed, images)
    text, drawn = np.asarray(prompt, np.int32), 0
    ended = np.zeros(len(text), bool)
    while drawn < max_new_tokens and not ended.all():
        text = text[:, -readable(model, text.shape[1]) :]
        count = max_new_tokens - drawn
        if not _relative(model):
            count = min(count, fixed.context - text.shape[1])
        for piece in stretch(text, drawn, count):
            sound = _sound(piece, ended, end)
            if end is not None:  # what follows the end of a row need be no token
                piece = np.where(piece == NOTHING, end, piece)
            if sound:
                yield piece[:, :sound]
            if sound < piece.shape[1]:
                raise _no_numbers(drawn + sound)
            drawn += piece.shape[1]
            text = np.concatenate([text, piece], axis=1)[:, -fixed.context :]
            ended |= (piece == end).any(axis=1)
            if ended.all():
                break


def _check(sampling: Sampling) -> None:
    """Refuses options that are out of their range."""
    within("the temperature", sampling.temperature, 0)
    within("top_k", sampling.top_k, 1)
    within("top_p", sampling.top_p, 0, 1)
    within("min_p", sampling.min_p, 0, 1)


def _sound(piece: np.ndarray, ended: np.ndarray, end: int | None) -> int:
    """How many columns of a piece were drawn in every row that had not ended before."""
    over = ended[:, None] | (np.cumsum(piece == end, axis=1) > 0)
    lacking = ((piece == NOTHING) & ~over).any(axis=0)
    return int(lacking.argmax()) if lacking.any() else len(lacking)


def _no_numbers(drawn: int) -> Problem:
    return Problem(
        "the model's next token cannot be drawn",
        why=f"after {drawn} tokens, every token that may follow has a logit that is not a number "
        "or -inf: parameters or activations are not finite",
        fix="take an earlier checkpoint; `jaxmodels inspect PATH --tensors` shows what is not "
        "finite",
        exit_code=UNVERIFIED,
    )


def readable(model: Any, length: int) -> int:
    """How many of so many tokens, the last ones, `generate` reads before it draws the next."""
    context = model.config.context
    return min(length, context) if length < context or _relative(model) else context // 2


def _relative(model: Any) -> bool:
    return ModelView(model).relative


def _stretch(
    fixed: "Fixed",
    params: Arrays,
    model_state: Arrays,
    sampling: Sampling,
    seed: int,
    images: np.ndarray | None,
    prompt: np.ndarray,
    drawn: int,
    count: int,
) -> Iterator[np.ndarray]:
    """Reads a prompt and continues it by `count` tokens, which fit the context or turn round.

    `drawn` tokens were drawn before. A piece is read while the next is decoded.
    """
    filled = prompt.shape[1]
    size = _room(filled + min(fixed.chunk, count - 1), fixed.context)
    padded = _pad(prompt, size)
    draw = seed, sampling
    state = _prefill(fixed, params, model_state, padded, filled, drawn, images, *draw, size=size)
    waiting, n, decode = state[0][:, None], 1, _decoder(params, model_state, len(prompt))
    for left in range(count - 1, 0, -fixed.chunk):
        n = min(left, fixed.chunk)
        if filled + n > size < fixed.context:
            size = _room(filled + n, fixed.context)
            state = _grow(state, size=size)
        state, tokens = decode(fixed, params, model_state, state, *draw, n)
        filled += n
        yield fetch(waiting)
        waiting = tokens
    yield fetch(waiting)[:, :n]  # only the last piece may be short


class Fixed(NamedTuple):
    """What a generation is compiled for. Hashable."""

    graphdef: GraphDef
    top_k: int | None
    banned: tuple[int, ...]
    chunk: int
    context: int


def _room(tokens: int, context: int) -> int:
    """Slots of a cache for so many tokens: a power of two or three quarters of one.

    Attention reads the whole cache, filled or not, so it grows with the text: in two steps to
    the double, so that generations of all lengths share few compilations.
    """
    double = max(1 << (tokens - 1).bit_length(), 64)
    size = double // 4 * 3
    return min(size if tokens <= size else double, context)


@partial(jax.jit, static_argnames="size")
def _grow(state: Any, *, size: int) -> Any:
    token, cache, drawn = state
    return token, cache.grown(size), drawn


def _pad(prompt: np.ndarray, size: int) -> np.ndarray:
    """Pads to a power of two, so that prompts of many lengths share few compilations."""
    padded = min(max(1 << (prompt.shape[1] - 1).bit_length(), 16), size)
    return np.pad(prompt, ((0, 0), (0, padded - prompt.shape[1])))


@partial(jax.jit, static_argnums=0, static_argnames="size")
def _prefill(
    fixed: Fixed,
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
    """The state to decode from: the first token, the cache before it, how many tokens were drawn.

    What the padding writes into the cache lies after `length`, where no query looks before it
    is overwritten.
    """
    model = fixed.graphdef.merge(params, model_state)
    drawn = jnp.zeros((), jnp.int32) + drawn
    if ModelView(model).prefill is not None:
        seen = {} if images is None else {"images": images}
        logits, cache = model.prefill(tokens, length, size, **seen)
    else:
        x, cache = model.hidden(tokens, model.init_cache(tokens.shape[0], size))
        last = jax.lax.dynamic_slice_in_dim(x, length - 1, 1, axis=1)  # the head is the most of it
        logits = model.logits(last)[:, 0]
        cache = cache._replace(length=jnp.zeros((), jnp.int32) + length)
    number = _numbers(seed, jnp.arange(len(tokens)), drawn[None])[0]
    return _draw(fixed, model, logits, number, sampling), cache, drawn + 1


def _piece(
    fixed: Fixed,
    params: Arrays,
    model_state: Arrays,
    state: Any,
    seed: Any,
    sampling: Sampling,
    n: Any,
) -> tuple[Any, jax.Array]:
    """Draws n ≤ chunk tokens for each row: the state after them, and int32 [b, chunk].

    n is no constant of the program, so that pieces of all lengths share one compilation.
    """
    model = fixed.graphdef.merge(params, model_state)
    step = ModelView(model).decode or model
    rows = len(state[0])
    numbers = _numbers(seed, jnp.arange(rows), state[2] + jnp.arange(fixed.chunk))

    def one(i: jax.Array, carry: Any) -> Any:
        (token, cache, drawn), tokens = carry
        logits, cache = step(token[:, None], cache)
        token = _draw(fixed, model, logits[:, 0], numbers[i], sampling)
        return (token, cache, drawn + 1), tokens.at[:, i].set(token)

    return jax.lax.fori_loop(0, n, one, (state, jnp.zeros((rows, fixed.chunk), jnp.int32)))


# On a CPU, XLA cuts the weights of each product into blocks (YNNPACK) unless it is told not to. So
# many rows do not pay for that (`benchmarks/LOG.md`).
UNCUT = range(8, 32)
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
_decode = jax.jit(_piece, static_argnums=0, donate_argnums=3)
_decode_uncut = jax.jit(_piece, static_argnums=0, donate_argnums=3, compiler_options=_OPTIONS)


def _decoder(
    params: Arrays, model_state: Arrays, rows: int
) -> Callable[..., tuple[Any, jax.Array]]:
    """`_piece`, compiled for so many rows; only products of float32 have the choice."""
    kinds = {leaf.dtype.name for leaf in (*params.values(), *model_state.values())}
    uncut = rows in UNCUT and not kinds & {"bfloat16", "float16", "uint8"} and _optional()
    return _decode_uncut if uncut else _decode


@cache
def _optional() -> bool:
    """Whether this XLA knows the option, which is an experiment of its authors."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS)()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _draw(
    fixed: Fixed, model: Any, logits: jax.Array, numbers: jax.Array, sampling: Sampling
) -> jax.Array:
    """The next token of each row, int32 [b]; never one that is banned or padding."""
    banned = _banned(model, fixed.banned)
    return sample(logits, numbers, sampling._replace(top_k=fixed.top_k), banned)


def _banned(model: Any, banned: tuple[int, ...]) -> np.ndarray:
    """True for the tokens of a vocabulary that are never drawn, padding among them: bool [v]."""
    ids = np.arange(model.config.vocab)
    return np.isin(ids, banned) | (ids >= (ConfigView(model.config).tokens or len(ids)))


def _numbers(seed: Any, rows: jax.Array, steps: jax.Array) -> jax.Array:
    """Random numbers in [0, 1) [steps, rows], each from the seed, its row and its step alone."""

    def number(step: jax.Array, row: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), step)
        return jax.random.uniform(key)

    return jax.vmap(jax.vmap(number, (None, 0)), (0, None))(steps, rows)


def before(end: int | None, tokens: np.ndarray) -> np.ndarray:
    """The tokens [n] before the first that ends a text."""
    ends = (tokens == end).nonzero()[0]
    return tokens[: ends[0]] if len(ends) else tokens
