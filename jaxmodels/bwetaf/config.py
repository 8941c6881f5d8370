"""Sizes and recipes of bwetaf. Source: seed 003 (the model card of BwETAFv2-53M)."""

from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


@dataclass(frozen=True)
class Config:
    """Sizes of one bwetaf.

    Raises:
        Problem: (usage) a size is out of its range, or sizes do not go together.
    """

    vocab: int = 50_260
    """Rows of the embedding, which is also the head."""
    tokens: int = 50_257
    """Token ids in use; rows from there on are padding and are never drawn."""
    dim: int = 512
    """Width of the residual stream."""
    layers: int = 8
    """Number of blocks."""
    heads: int | tuple[int, ...] = 8
    """Attention heads, or those of each block."""
    hidden: int = 1536
    """Width of the feed-forward."""
    context: int = 2048
    """Longest window."""
    dropout: float = 0.1
    """Dropout rate on what attention adds."""
    positions: Literal["rotate", "sinusoidal"] = "rotate"
    """Whether embeddings are rotated by their position or a sinusoid is added to them."""
    rotate_qk: bool = False
    """Also rotate queries and keys, as the seed's card says; its published code never does."""
    embed_scale: float = 1.0
    """Factor of the embeddings."""
    residual_scale: float = 1.0
    """Factor of the residual stream wherever a block adds to it."""
    init_range: float = 0.02
    """Standard deviation of a fresh embedding."""

    def __post_init__(self) -> None:
        for name in ("vocab", "tokens", "dim", "layers", "hidden", "context"):
            within(f"model.{name}", getattr(self, name), 1)
        within("model.dropout", self.dropout, 0, 1, below=True)
        within("model.init_range", self.init_range, 0)
        for name in ("embed_scale", "residual_scale"):
            within(f"model.{name}", getattr(self, name), -inf)
        if len(self.heads_by_layer) != self.layers:
            raise Problem(
                f"bwetaf: {len(self.heads_by_layer)} head counts for {self.layers} blocks",
                fix="give --model.heads one number, or one for each block",
                exit_code=USAGE,
            )
        for heads in self.heads_by_layer:
            within("model.heads", heads, 1)
            if self.dim % (2 * heads):
                raise Problem(
                    f"bwetaf: dim {self.dim} is not a multiple of 2 × heads ({2 * heads})",
                    why="every head needs an even width, because rotary embedding turns pairs",
                    fix="change --model.dim or --model.heads",
                    exit_code=USAGE,
                )
        if self.tokens > self.vocab:
            raise Problem(
                f"bwetaf: {self.tokens} tokens do not fit {self.vocab} rows",
                fix="give --model.tokens at most as many as --model.vocab",
                exit_code=USAGE,
            )

    @property
    def heads_by_layer(self) -> tuple[int, ...]:
        """The head count of each block."""
        return self.heads if isinstance(self.heads, tuple) else (self.heads,) * self.layers


PRESETS = {
    "tiny": Config(
        vocab=64, tokens=64, dim=32, layers=2, heads=2, hidden=64, context=32, dropout=0.0
    ),
    # The seed's card.
    "53m": Config(),
    # Of this one the card tells the count and the context only. The sizes are ours: the series'
    # feed-forward of 3 × dim and head width of 64 make 130,649,088 parameters of 12 × 768.
    "130m": Config(dim=768, layers=12, heads=12, hidden=2304, context=4096),
}

# The seed's card. It states no clipping. 20,578 steps of 32 × 2,048 are its 1,348,599,808 tokens.
_SEED = Recipe(
    tokenizer="gpt2",
    batch=32,
    steps=20_578,
    dtype="bfloat16",
    eval_every=1000,
    save_every=1000,
    sample_every=1000,
    optim=Optim(
        peak_lr=1.3e-3,
        end_lr=1e-7,
        warmup=0.04,
        b1=0.87,
        b2=0.94,
        eps=1e-6,
        weight_decay=0.1,
        clip=0.0,
    ),
)

RECIPES = {
    "tiny": replace(
        _SEED,
        tokenizer="chars",
        batch=16,
        steps=200,
        dtype="float32",
        eval_every=100,
        save_every=100,
        sample_every=100,
    ),
    "53m": _SEED,
    # 3.01e9 tokens on the card; batch and learning rate for this size are not published.
    "130m": replace(_SEED, steps=22_965),
}
