"""Sizes and recipes. Source: Touvron et al. 2023 (arXiv:2302.13971, 2307.09288)."""

from dataclasses import dataclass, replace

from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


@dataclass(frozen=True)
class Config:
    """Sizes of one Llama.

    Raises:
        Problem: (usage) a size is out of its range, or sizes do not go together.
    """

    vocab: int = 32_000
    """Rows of the embedding and width of the logits."""
    dim: int = 4096
    """Width of the residual stream."""
    layers: int = 32
    """Number of blocks."""
    heads: int = 32
    """Heads of the queries; they share dim evenly."""
    kv_heads: int = 32
    """Heads of keys and values; each serves heads / kv_heads queries."""
    hidden: int = 11_008
    """Width of the feed-forward."""
    context: int = 2048
    """Longest window that it is trained on; also the size of the decoding cache."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    eps: float = 1e-6
    """Is added to the mean square in RMSNorm."""

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "layers", "heads", "kv_heads", "hidden", "context"):
            within(f"model.{name}", getattr(self, name), 1)
        within("model.rope_base", self.rope_base, 1)
        within("model.eps", self.eps, 0)
        for whole, part in (("dim", 2 * self.heads), ("heads", self.kv_heads)):
            if getattr(self, whole) % part:
                raise Problem(
                    f"llama: {whole} {getattr(self, whole)} is not a multiple of {part}",
                    why="heads have one even width, and query heads share those of keys evenly",
                    fix="change --model.dim, --model.heads or --model.kv-heads",
                    exit_code=USAGE,
                )


PRESETS = {
    "tiny": Config(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=64, context=32),
    "7b": Config(),
}
_OPTIM = Optim(peak_lr=3e-4, end_lr=3e-5, warmup=2000.0, b2=0.95, weight_decay=0.1, clip=1.0)
_TINY = replace(_OPTIM, peak_lr=1e-2, end_lr=1e-3, warmup=0.1)
RECIPES = {
    "tiny": Recipe(
        batch=16, steps=200, eval_every=100, save_every=100, sample_every=100, optim=_TINY
    ),
    # The paper's: batches of 4 million tokens.
    "7b": Recipe(data="c4", tokenizer="gpt2", batch=64, accum=32, steps=250_000, optim=_OPTIM),
}
