"""The wigip model and its loss. Source: seed 000 (nurric-ai/Wigip_v2_1.7B_ViT).

Notable: the text fills a square grid line by line; a convolution makes one vector of each patch
of P × P characters; attention has no mask; the head reads patch 0 alone, which predicts the one
character that follows the whole grid. GELU is the tanh approximation, LayerNorm's eps 1e-6. The
seed keeps its head in float32: here its inputs are those of the other products, its sums and
logits float32. With `objective = "dense"` the same parameters predict every character
(`wigip/dense.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.losses import cross_entropy
from jaxmodels.layers.norm import layer_norm
from jaxmodels.layers.remat import remat
from jaxmodels.layers.sharding import spread
from jaxmodels.wigip.config import Config
from jaxmodels.wigip.dense import PatchCache, attend, attend_to

# (queries, keys, values) → what attention adds, and what is to be remembered of the block.
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


class Window(NamedTuple):
    """What `next_char` remembers: the last characters, as many as the grid holds."""

    ids: Int[Array, "b s"]

    def grown(self, size: int) -> "Window":
        """The same: a window has one size."""
        return self


class Attention(nnx.Module):
    """Multi-head attention of any kind; all four projections have biases."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        heads = (cfg.heads, cfg.dim // cfg.heads)
        self.q = nnx.LinearGeneral(cfg.dim, heads, rngs=rngs)
        self.k = nnx.LinearGeneral(cfg.dim, heads, rngs=rngs)
        self.v = nnx.LinearGeneral(cfg.dim, heads, rngs=rngs)
        self.proj = nnx.LinearGeneral(heads, cfg.dim, axis=(-2, -1), rngs=rngs)

    def __call__(self, x, attend: Attend):
        """[… d] → [… d], and what is to be remembered."""
        out, kept = attend(self.q(x), self.k(x), self.v(x))
        return self.proj(out), kept


class Mlp(nnx.Module):
    """Two layers with a GELU between them."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(cfg.dim, 4 * cfg.dim, rngs=rngs)
        self.out = nnx.Linear(4 * cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, x):
        """[… d] → [… d]."""
        hidden = nnx.gelu(self.up(x), approximate=True)
        return self.out(spread(hidden, "data", ..., "model"))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.attn = Attention(cfg, rngs=rngs)
        self.norm2 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(self, x, attend: Attend):
        """float32 [… d] → [… d], and what is to be remembered."""
        out, kept = self.attn(layer_norm(self.norm1, x), attend)
        x = spread(x + out, "data", ...)
        return spread(x + self.mlp(layer_norm(self.norm2, x)), "data", ...), kept


def stacked(cfg: Config, rngs: nnx.Rngs) -> Block:
    """All blocks as one, each parameter with a leading axis [layers]; every layer drawn anew."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Block(cfg, rngs=nnx.Rngs(0))))

    def one(key: Array) -> Any:
        return nnx.split(Block(cfg, rngs=nnx.Rngs(key)))[1]

    return nnx.merge(graph, jax.vmap(one)(jax.random.split(rngs.params(), cfg.layers)))


class Model(nnx.Module):
    """wigip. It has no dropout, so every call is deterministic."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        size = (cfg.patch, cfg.patch)
        self.embed = nnx.Embed(cfg.vocab, cfg.area, rngs=rngs)
        self.patch = nnx.Conv(cfg.area, cfg.dim, size, size, padding="VALID", rngs=rngs)
        place = nnx.initializers.normal(0.02)
        self.pos = nnx.Embed(cfg.patches, cfg.dim, embedding_init=place, rngs=rngs)
        self.blocks = stacked(cfg, rngs)
        self.norm = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.head = nnx.Linear(cfg.dim, cfg.vocab, rngs=rngs)

    @property
    def relative(self) -> bool:
        """Whether a window may move on by one character for ever (see `generate`)."""
        return self.config.objective == "next_char"

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        cache: Window | PatchCache | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b *t v"], Window | PatchCache | None]:
        """Logits of the next character.

        Args:
            tokens: character ids. Without a cache: as many as the grid holds; with
                `objective = "dense"` also fewer.
            cache: what came before the tokens (`init_cache`).
            rngs: for the calls of other models; nothing is random here.

        Returns:
            float32 [b, v], after all tokens; with a cache [b, t, v], after each of them, and the
            cache with the tokens added.

        Raises:
            Problem: (usage) another number of tokens than the grid takes.
        """
        if cache is not None:
            step = self._encoded if isinstance(cache, Window) else self._decoded

            def one(cache: Any, token: Array) -> tuple[Any, Array]:
                return step(cache, token)

            cache, logits = jax.lax.scan(one, cache, tokens.T)
            return rearrange(logits, "t b v -> b t v"), cache
        self._check(tokens.shape[1])
        if self.config.objective == "dense":
            return self.logits(self.dense(tokens)[:, -1]), None
        return self.logits(self.hidden(tokens)), None

    def hidden(self, tokens: Int[Array, "b s"]) -> Float[Array, "b d"]:
        """What the head reads of a whole grid: patch 0 after the final norm."""
        cfg = self.config
        ids = rearrange(
            tokens,
            "b (r p c q) -> b (r c) (p q)",
            r=cfg.side // cfg.patch,
            p=cfg.patch,
            q=cfg.patch,
        )
        x = self._placed(self._whole(ids), jnp.arange(cfg.patches))
        x, _ = self._through(x, lambda q, k, v: (self_attention(q, k, v, causal=False), None))
        return layer_norm(self.norm, x[:, :1])[:, 0]

    def dense(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """What the head reads after each character of a text; see `wigip/dense.py`."""
        t, area = tokens.shape[1], self.config.area
        padded = jnp.pad(tokens, ((0, 0), (0, -t % area)))
        terms = self._terms(rearrange(padded, "b (n p) -> b n p", p=area))
        places = jnp.arange(terms.shape[1])[:, None]
        x = self._placed(jnp.cumsum(terms, axis=2), places)
        x, _ = self._through(x, lambda q, k, v: (attend(q, k, v), None))
        x = layer_norm(self.norm, x)
        return rearrange(x, "b n p d -> b (n p) d")[:, :t]

    def logits(self, x: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """float32 logits of what the head reads."""
        assert self.head.bias is not None
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        return product("...d,dv->...v", x, self.head.kernel[...]) + self.head.bias[...]

    def init_cache(self, batch: int, size: int | None = None) -> Window | PatchCache:
        """An empty cache of `batch` sequences.

        Args:
            batch: sequences.
            size: characters that it must hold, at most the context (None). A window always
                holds the context, filled with id 0 to begin with.
        """
        cfg = self.config
        if cfg.objective == "next_char":
            return Window(jnp.zeros((batch, cfg.context), jnp.int32))
        n = -(-min(size or cfg.context, cfg.context) // cfg.area)
        shape = (cfg.layers, batch, n, cfg.heads, cfg.dim // cfg.heads)
        keys, values = (jnp.zeros(shape, self.embed.embedding[...].dtype) for _ in range(2))
        ids = jnp.zeros((batch, n * cfg.area), jnp.int32)
        return PatchCache(keys, values, ids, jnp.zeros((), jnp.int32))

    def prefill(
        self, tokens: Int[Array, "b t"], length: Int[Array, ""], size: int
    ) -> tuple[Float[Array, "b v"], Window | PatchCache]:
        """Logits after the first `length` tokens, and the cache that holds these.

        Args:
            tokens: a prompt, padded at its end to any length.
            length: tokens of the prompt, at least 1.
            size: characters that the cache must hold.
        """
        cache = self.init_cache(tokens.shape[0], size)
        if isinstance(cache, Window):
            ids = jnp.concatenate([cache.ids, tokens], axis=1)
            ids = jax.lax.dynamic_slice_in_dim(ids, length, self.config.context, axis=1)
            return self.logits(self.hidden(ids)), Window(ids)
        ids = jnp.pad(tokens, ((0, 0), (0, cache.ids.shape[1] - tokens.shape[1])))
        patches = rearrange(ids, "b (n p) -> b n p", p=self.config.area)
        x = self._placed(self._whole(patches), jnp.arange(patches.shape[1]))
        _, (keys, values) = self._through(
            x, lambda q, k, v: (self_attention(q, k, v), (k, v)), keep=True
        )
        # The last token is read again, so that the head sees its patch as far as it is filled.
        cache = PatchCache(keys, values, ids, jnp.zeros((), jnp.int32) + length - 1)
        token = jax.lax.dynamic_index_in_dim(ids, length - 1, axis=1, keepdims=False)
        cache, logits = self._decoded(cache, token)
        return logits, cache

    def _encoded(self, cache: Window, token: Int[Array, "b"]) -> tuple[Window, Float[Array, "b v"]]:
        """One more character in the window, which is read anew."""
        ids = jnp.concatenate([cache.ids[:, 1:], token[:, None]], axis=1)
        return Window(ids), self.logits(self.hidden(ids))

    def _decoded(
        self, cache: PatchCache, token: Int[Array, "b"]
    ) -> tuple[PatchCache, Float[Array, "b v"]]:
        """One more character in the patch that is being filled."""
        area = self.config.area
        at, filled = cache.length // area, cache.length % area
        ids = jax.lax.dynamic_update_slice(cache.ids, token[:, None], (0, cache.length))
        patch = jax.lax.dynamic_slice_in_dim(ids, at * area, area, axis=1)
        terms = self._terms(patch[:, None])
        own = jnp.where((jnp.arange(area) <= filled)[:, None], terms, 0).sum(axis=2)
        x = self._placed(own, at[None])[:, :, None]
        seen = jnp.arange(cache.keys.shape[2])[None] < at

        def look(before: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            return attend_to(q, k, v, *before, seen), (k[:, :, 0], v[:, :, 0])

        x, new = self._through(x, look, (cache.keys, cache.values), keep=True)
        write = jax.lax.dynamic_update_slice
        keys, values = (
            write(old, part, (0, 0, at, 0, 0))
            for old, part in zip((cache.keys, cache.values), new, strict=True)
        )
        logits = self.logits(layer_norm(self.norm, x[:, 0])[:, 0])
        return PatchCache(keys, values, ids, cache.length + 1), logits

    def _terms(self, ids: Int[Array, "b n p"]) -> Float[Array, "b n p d"]:
        """What each character adds to its patch: the products of the convolution, not summed."""
        return self._convolved("bnpe,ped->bnpd", ids)

    def _whole(self, ids: Int[Array, "b n p"]) -> Float[Array, "b n d"]:
        """The convolution: the sum of the terms of a patch."""
        return self._convolved("bnpe,ped->bnd", ids)

    def _convolved(self, product: str, ids: Array) -> Array:
        kernel = rearrange(self.patch.kernel[...], "p q e d -> (p q) e d")
        embedded = self.embed.embedding[...][ids]
        return jnp.einsum(product, embedded, kernel, preferred_element_type=jnp.float32)

    def _placed(self, x: Array, places: Array) -> Array:
        """float32 sums of terms, with the convolution's bias and the positions of their patches."""
        assert self.patch.bias is not None
        x = x + self.patch.bias[...] + self.pos.embedding[...][places]
        return spread(x, "data", ...)

    def _through(
        self, x: Array, attend: Callable[..., Any], before: Any = None, keep: bool = False
    ) -> tuple[Array, Any]:
        """x after all blocks, one after the other in a scan, and what they remember, stacked.

        Args:
            x: float32 [b … d].
            attend: as `Attend`, after what `before` has for the block, where there is any.
            before: a pytree with a leading axis [layers], or None.
            keep: nothing is computed again: there is no backward pass.
        """
        graph, leaves = nnx.split(self.blocks)

        def one(x: Array, layer: Any) -> tuple[Array, Any]:
            leaves, *known = layer
            return nnx.merge(graph, leaves)(x, partial(attend, *known))

        body = remat(one, "none" if keep else self.remat, prevent_cse=False)
        return jax.lax.scan(body, x, (leaves,) if before is None else (leaves, before))

    def _check(self, t: int) -> None:
        most = self.config.context
        if t == most or (self.config.objective == "dense" and t <= most):
            return
        raise Problem(
            f"wigip: {t} tokens, where the grid takes {most}",
            why="the model reads a whole grid and predicts the one character after it"
            if self.config.objective == "next_char"
            else "positions are learned: there is none beyond the grid",
            fix="`generate` takes prompts of any length",
            exit_code=USAGE,
        )


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Mean cross-entropy in nats of the character after each window, or of every character.

    Args:
        model: the model; it is read, never changed. Its config says the objective.
        batch: `tokens` int32 [b, t+1]; the first t are inputs. With `next_char` t is the
            context, and the last token is the only target; with `dense` the last t are targets.
        rngs: nothing is random here.

    Returns:
        the loss, and `aux`, which is empty: nothing is stored.
    """
    tokens = batch["tokens"]
    if model.config.objective == "dense":
        model._check(tokens.shape[1] - 1)
        return cross_entropy(model.logits(model.dense(tokens[:, :-1])), tokens[:, 1:]), {}
    logits, _ = model(tokens[:, :-1])
    return cross_entropy(logits, tokens[:, -1]), {}
