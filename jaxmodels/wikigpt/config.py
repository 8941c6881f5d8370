"""Sizes and recipes of wikigpt. Sources: seed 001; karpathy/nanoGPT (MIT), which it follows."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


@dataclass(frozen=True)
class Config:
    """Sizes of one wikigpt.

    Raises:
        Problem: (usage) a size is out of its range, or sizes do not go together.
    """

    vocab: int = 50_304
    """Rows of the embedding, and width of the logits: GPT-2's tokens rounded up to 64s."""
    tokens: int = 50_257
    """Token ids in use; rows from here on are padding, which is never drawn."""
    dim: int = 384
    """Width of the residual stream."""
    layers: int = 6
    """Number of blocks."""
    heads: int = 6
    """Attention heads; they share dim evenly."""
    hidden: int = 0
    """Width of the feed-forward; 0 means 4 × dim."""
    context: int = 256
    """Positions: the longest text that it reads at once."""
    dropout: float = 0.1
    """Dropout rate on embeddings, attention weights and what is added to the residual."""
    bias: bool = True
    """Whether linear layers and LayerNorms have biases."""
    gelu: Literal["exact", "tanh"] = "exact"
    """By the error function (nanoGPT), or its tanh approximation (GPT-2)."""

    FOLLOWS: ClassVar[dict[str, tuple[str, int]]] = {"hidden": ("dim", 4)}

    def __post_init__(self) -> None:
        if self.hidden == 0:
            object.__setattr__(self, "hidden", 4 * self.dim)
        for name in ("vocab", "tokens", "dim", "layers", "heads", "hidden"):
            within(f"model.{name}", getattr(self, name), 1)
        # Generation reads the last half of a full context again.
        within("model.context", self.context, 2)
        within("model.dropout", self.dropout, 0, 1, below=True)
        if self.dim % self.heads:
            raise Problem(
                f"wikigpt: dim {self.dim} is not a multiple of heads ({self.heads})",
                why="the heads share the width evenly",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )
        if self.tokens > self.vocab:
            raise Problem(
                f"wikigpt: {self.tokens} tokens do not fit a vocabulary of {self.vocab}",
                why="every token needs a row of the embedding",
                fix="change --model.tokens or --model.vocab",
                exit_code=USAGE,
            )


PRESETS = {
    "tiny": Config(
        vocab=64, tokens=64, dim=32, layers=2, heads=2, hidden=64, context=32, dropout=0.0
    ),
    # The seed's.
    "base": Config(),
    # nanoGPT's config/train_shakespeare_char.py, and its README's smaller one for a CPU. The
    # vocabulary is the text's characters, 65 in tiny Shakespeare.
    "shakespeare": Config(vocab=65, tokens=65, dropout=0.2, bias=False),
    "shakespeare-cpu": Config(
        vocab=65, tokens=65, dim=128, layers=4, heads=4, context=64, dropout=0.0, bias=False
    ),
    # The smallest GPT-2, as OpenAI published it.
    "gpt2-124m": Config(
        vocab=50_257,
        dim=768,
        layers=12,
        heads=12,
        hidden=3072,
        context=1024,
        dropout=0.0,
        gelu="tanh",
    ),
}

# nanoGPT's training of GPT-2: AdamW that decays matrices only, warm-up, cosine to a tenth.
_NANOGPT = Recipe(
    tokenizer="gpt2",
    batch=12,
    accum=40,
    steps=600_000,
    dtype="bfloat16",
    eval_every=1000,
    save_every=1000,
    sample_every=1000,
    optim=Optim(
        peak_lr=6e-4,
        end_lr=6e-5,
        warmup=2000.0,
        b1=0.9,
        b2=0.95,
        weight_decay=0.1,
        no_decay=("*/bias", "*/scale"),
        clip=1.0,
    ),
)

_SHAKESPEARE = replace(
    _NANOGPT,
    tokenizer="bare-chars",
    batch=64,
    accum=1,
    steps=5000,
    valid_fraction=0.1,
    eval_every=250,
    eval_batches=200,
    save_every=250,
    sample_every=250,
    prompt="ROMEO:",
    optim=replace(_NANOGPT.optim, peak_lr=1e-3, end_lr=1e-4, warmup=100.0, b2=0.99),
)

RECIPES = {
    "tiny": replace(
        _NANOGPT,
        tokenizer="chars",
        batch=16,
        accum=1,
        steps=200,
        dtype="float32",
        eval_every=100,
        save_every=100,
        sample_every=100,
        optim=replace(_NANOGPT.optim, peak_lr=1e-2, end_lr=1e-3, warmup=0.1),
    ),
    # The seed says 16,000 iterations with accumulation, warm-up, cosine and mixed precision, the
    # best checkpoint kept; batch and rates, which it does not say, are of nanoGPT's order.
    "base": replace(
        _NANOGPT,
        data="wikipedia",
        batch=32,
        accum=4,
        steps=16_000,
        prompt="The best thing is",
        optim=replace(_NANOGPT.optim, warmup=0.05),
    ),
    "shakespeare": _SHAKESPEARE,
    "shakespeare-cpu": replace(
        _SHAKESPEARE, batch=12, steps=2000, dtype="float32", eval_batches=20
    ),
    "gpt2-124m": _NANOGPT,
}
