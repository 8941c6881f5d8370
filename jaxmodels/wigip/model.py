"""The wigip model and its loss. Source: seed 000 (nurric-ai/Wigip_v2_1.7B_ViT).

Notable: the text fills a square grid line by line; a convolution turns each patch of P × P
characters into one vector; attention has no mask; the head reads patch 0 alone and predicts the
one character that follows the whole grid. GELU is the tanh approximation, LayerNorm's eps 1e-6.
The seed computes its head in float32; here the head's inputs have the dtype of the other products,
its sums and logits are float32. With `objective = "dense"` the same parameters predict every
character (`wigip/dense.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.losses import cross_entropy
from jaxmodels.layers.norm import layer_norm
from jaxmodels.layers.remat import remat
from jaxmodels.layers.sharding import constrain
from jaxmodels.layers.target import platform
from jaxmodels.layers.tiles import pad_to_tiles, tiled
from jaxmodels.wigip import decoding, images
from jaxmodels.wigip.blocks import stacked
from jaxmodels.wigip.config import Config
from jaxmodels.wigip.dense import attend
from jaxmodels.wigip.images import Images


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
        self.head = Linear(cfg.dim, cfg.vocab, rngs=rngs)
        if cfg.images:  # drawn last: the other parameters are those of a model without
            self.images = Images(cfg, rngs=rngs)

    @property
    def relative(self) -> bool:
        """Whether the window can move on without limit (see `generate`)."""
        return self.config.objective == "next_char"

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        cache: decoding.Cache | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b *t v"], decoding.Cache | None]:
        """Logits of the next character.

        Args:
            tokens: character ids. Without a cache: as many as the grid holds; with
                `objective = "dense"` also fewer.
            cache: of the tokens before (`init_cache`).
            rngs: ignored; there is no dropout.

        Returns:
            float32 [b, v], after all tokens; with a cache [b, t, v], after each of them, and the
            cache with the tokens added.

        Raises:
            Problem: (usage) another number of tokens than the grid takes.
        """
        if cache is not None:
            cache, logits = jax.lax.scan(partial(decoding.step, self), cache, tokens.T)
            return rearrange(logits, "t b v -> b t v"), cache
        self.check(tokens.shape[1])
        if self.config.objective == "dense":
            return self.logits(self.dense(tokens)[:, -1]), None
        return self.logits(self.hidden(tokens)), None

    def hidden(self, tokens: Int[Array, "b s"]) -> Float[Array, "b d"]:
        """The head's input for a full grid: patch 0 after the final norm."""
        x = self.convolved(self.embedded(self.by_lines(tokens)))
        x = self.attended(self.placed(x, jnp.arange(x.shape[1])))
        return layer_norm(self.norm, x[:, :1])[:, 0]

    def read(self, x: Float[Array, "b n d"], causal: bool = False) -> Float[Array, "b n d"]:
        """All patches after the trunk and the final norm."""
        n = x.shape[1]
        return layer_norm(self.norm, self.attended(x, causal)[:, :n])

    def attended(self, x: Float[Array, "b n d"], causal: bool = False) -> Float[Array, "b s d"]:
        """Patches after the trunk, padded to a TPU's tiles; with `causal`, each sees only itself
        and those before it, otherwise all."""
        x, segments = pad_to_tiles(x)
        full = partial(self_attention, causal=causal, segments=segments)
        return self.through(x, lambda q, k, v: (full(q, k, v), None))[0]

    def by_lines(self, ids: Int[Array, "b t"]) -> Int[Array, "b n p"]:
        """Full rows of patches: the text fills the grid line by line."""
        sizes = {"p": self.config.patch, "q": self.config.patch, "c": self.config.side}
        sizes["c"] //= self.config.patch
        return rearrange(ids, "b (r p c q) -> b (r c) (p q)", **sizes)

    def laid_out(self, ids: Int[Array, "b t"]) -> Int[Array, "b n p"]:
        """Full rows of patches as the objective lays them out: by lines, or patch by patch."""
        if self.config.objective == "next_char":
            return self.by_lines(ids)
        return rearrange(ids, "b (n p) -> b n p", p=self.config.area)

    def dense(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The head's input after each character of a text; see `wigip/dense.py`."""
        t, area = tokens.shape[1], self.config.area
        n = tiled(-(-t // area))  # no patch sees those behind it
        padded = jnp.pad(tokens, ((0, 0), (0, n * area - t)))
        terms = self.terms(self.embedded(rearrange(padded, "b (n p) -> b n p", p=area)))
        # States before patches: all that follows is made of sequences of n rows.
        x = rearrange(jnp.cumsum(terms, axis=2), "b n p d -> b p n d")
        x = self.placed(x, jnp.minimum(jnp.arange(n), self.config.patches - 1))
        x, _ = self.through(x, lambda q, k, v: (attend(q, k, v), None))
        x = layer_norm(self.norm, x)
        return rearrange(x, "b p n d -> b (n p) d")[:, :t]

    def logits(self, x: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """float32 logits, from the head's inputs."""
        assert self.head.bias is not None
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        return product("...d,dv->...v", x, self.head.kernel[...]) + self.head.bias[...]

    def text_features(
        self, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b d"]:
        """float32 unit vectors of captions; see `images.text_features`."""
        return images.text_features(self, tokens, mask)

    def image_features(self, pictures: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """float32 unit vectors of images in [0, 1]; see `images.image_features`."""
        return images.image_features(self, pictures)

    def drawn(self, pictures: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Images in [0, 1], each patch predicted from those before it; see `images.drawn`."""
        return images.drawn(self, pictures)

    def init_cache(self, batch: int, size: int | None = None) -> decoding.Cache:
        """An empty cache of `batch` sequences.

        Args:
            batch: sequences.
            size: characters that it must hold; None: the context, which is the most. A window
                always holds the whole context, initially id 0.
        """
        return decoding.empty(self, batch, size or self.config.context)

    def prefill(
        self, tokens: Int[Array, "b t"], length: Int[Array, ""], size: int
    ) -> tuple[Float[Array, "b v"], decoding.Cache]:
        """Logits after the first `length` tokens, and the cache that holds these.

        Args:
            tokens: a prompt, padded at its end to any length.
            length: tokens of the prompt, at least 1.
            size: characters that the cache must hold.
        """
        return decoding.prefill(self, tokens, length, self.init_cache(tokens.shape[0], size))

    def about_prompt(self, length: int) -> str:
        """A note for the user about a prompt of this length; usually empty."""
        lacking = self.config.context - length
        if self.config.objective == "dense" or lacking <= 0:
            return ""
        return (
            f"the model reads windows of {self.config.context} characters: {lacking} of id 0 "
            "stand before the prompt"
        )

    def embedded(self, ids: Int[Array, "b n p"]) -> Float[Array, "b n p e"]:
        """The characters' embeddings, P² numbers each."""
        return self.embed.embedding[...][ids]

    def terms(self, embedded: Float[Array, "b n p e"]) -> Float[Array, "b n p d"]:
        """Each character's term in the convolution of its patch."""
        return self._product("bnpe,ped->bnpd", embedded)

    def convolved(self, embedded: Float[Array, "b n p e"]) -> Float[Array, "b n d"]:
        """The convolution: the sum of a patch's terms."""
        return self._product("bnpe,ped->bnd", embedded)

    def _product(self, product: str, embedded: Array) -> Array:
        kernel = rearrange(self.patch.kernel[...], "p q e d -> (p q) e d")
        return jnp.einsum(product, embedded, kernel, preferred_element_type=jnp.float32)

    def placed(
        self, x: Float[Array, "b *p n d"], places: Int[Array, "n"]
    ) -> Float[Array, "b *p n d"]:
        """float32 sums of terms, with the convolution's bias and the positions of their patches."""
        assert self.patch.bias is not None
        x = x + self.patch.bias[...] + self.pos.embedding[...][places]
        return constrain(x, "data", ...)

    def through(
        self,
        x: Float[Array, "b *n d"],
        attend: Callable[..., Any],
        before: Any = None,
        keep: bool = False,
    ) -> tuple[Float[Array, "b *n d"], Any]:
        """x after all blocks, applied in a scan, and their cache entries, stacked.

        Args:
            x: float32, one or more axes between batch and width.
            attend: an `Attend`; with `before`, it takes the block's entry of that first.
            before: a pytree with a leading axis [layers], or None.
            keep: do not recompute activations, since there is no backward pass.
        """
        graph, leaves = nnx.split(self.blocks)

        def one(x: Array, layer: Any) -> tuple[Array, Any]:
            leaves, *known = layer
            if platform() == "tpu":
                leaves = jax.lax.optimization_barrier(leaves)
            return nnx.merge(graph, leaves)(x, partial(attend, *known))

        body = remat(one, "none" if keep else self.remat, prevent_cse=False)
        return jax.lax.scan(body, x, (leaves,) if before is None else (leaves, before))

    def check(self, t: int) -> None:
        """Raises a Problem (usage) if the grid does not take t tokens."""
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
        rngs: ignored; there is no dropout.

    Returns:
        the loss, and an empty `aux`.

    Raises:
        Problem: (usage) the batch has `segments`.
    """
    if "images" in batch:
        return images.loss(model, batch, rngs)
    tokens = batch["tokens"]
    if "segments" in batch:
        raise Problem(
            "wigip cannot keep documents apart",
            why="a patch may hold pieces of two of them",
            fix="leave --segments out",
            exit_code=USAGE,
        )
    if model.config.objective == "dense":
        model.check(tokens.shape[1] - 1)
        logits = model.logits(model.dense(tokens[:, :-1]))
    else:
        logits = model(tokens[:, :-1])[0][:, None]
    value = cross_entropy(logits, targets(model, tokens))
    # Batches of text and of images take turns: each kind has metrics of its own.
    return value, {"metrics": {"text_loss": value}} if model.config.images else {}


def targets(model: Model, tokens: Any) -> Any:
    """The tokens of a batch, int [b, t], that the loss predicts: all but the first, or only the
    last; int [b, n], a JAX or numpy array like `tokens`.
    """
    return tokens[:, 1:] if model.config.objective == "dense" else tokens[:, -1:]
