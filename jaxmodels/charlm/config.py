"""Sizes and recipes of charlm. Source: seed 002 (Beiglar/Transformer_mini, MIT)."""

from dataclasses import dataclass, replace

from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


@dataclass(frozen=True)
class Config:
    """Sizes of one charlm.

    Raises:
        Problem: (usage) a size is out of its range, or the heads do not divide the width.
    """

    vocab: int = 256
    """Rows of the embedding and of the head; training sets it from the vocabulary."""
    dim: int = 256
    """Width of the residual stream."""
    layers: int = 6
    """Number of blocks."""
    heads: int = 8
    """Attention heads; dim / heads must be even (rotary pairs)."""
    mlp_ratio: float = 4.0
    """Feed-forward width over dim, rounded down."""
    context: int = 1024
    """Longest window that it is trained on; also the size of the decoding cache."""
    dropout: float = 0.5
    """Dropout rate inside the feed-forward."""
    dropout_end: float | None = None
    """When set, the rate decays from `dropout` towards this value as steps pass."""
    dropout_scale: int = 1000
    """Steps after which a decaying rate has gone half of the way."""

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "layers", "heads", "context", "dropout_scale"):
            within(f"model.{name}", getattr(self, name), 1)
        for name in ("dropout", "dropout_end"):
            within(f"model.{name}", getattr(self, name), 0, 1, below=True)
        within("model.mlp_ratio", self.mlp_ratio, 0)
        within("model.dim × model.mlp_ratio", self.hidden, 1)
        if self.dim % (2 * self.heads):
            raise Problem(
                f"charlm: dim {self.dim} is not a multiple of 2 × heads ({2 * self.heads})",
                why="every head needs an even width, because rotary embedding turns pairs",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )

    @property
    def hidden(self) -> int:
        """Width of the feed-forward."""
        return int(self.dim * self.mlp_ratio)


PRESETS = {
    "tiny": Config(vocab=64, dim=32, layers=2, heads=2, mlp_ratio=2.0, context=32, dropout=0.0),
    # The seed's notebook.
    "notebook": Config(
        vocab=98, dim=128, layers=2, heads=8, mlp_ratio=2.0, context=64, dropout=0.2
    ),
    # The seed's defaults.
    "base": Config(),
}

# The seed's notebook: clip 1, AdamW with optax's defaults, warm-up over 10% of the steps from
# 1e-3 to 1e-2, cosine to 1e-5, characters seen at least four times, 5% held out.
_SEED = Recipe(
    batch=512,
    steps=1600,
    min_freq=4,
    valid_fraction=0.05,
    optim=Optim(
        init_lr=1e-3,
        peak_lr=1e-2,
        end_lr=1e-5,
        warmup=0.1,
        b1=0.9,
        b2=0.999,
        weight_decay=1e-4,
        clip=1.0,
    ),
)

RECIPES = {
    "tiny": replace(_SEED, batch=16, steps=200, eval_every=100, save_every=100, sample_every=100),
    "notebook": _SEED,
    # The seed's LRConfig defaults, for the larger model.
    "base": replace(
        _SEED,
        batch=32,
        steps=10_000,
        optim=replace(_SEED.optim, init_lr=1e-4, peak_lr=1e-3),
    ),
}
