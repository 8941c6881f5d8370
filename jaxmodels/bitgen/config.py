"""Sizes and recipes of bitgen: what the card of seed 004 (BitGen Stage 1) promises."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxmodels import dinov2 as tower
from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


@dataclass(frozen=True)
class Config:
    """Sizes of one bitgen. The defaults are the card's.

    Raises:
        Problem: (usage) a size is out of its range, or sizes do not go together.
    """

    vocab: int = 50_257
    """Rows of the embedding, which is also the decoder's head; training sets it."""
    dim: int = 128
    """Width of text, image tokens behind the tower, features and codes."""
    layers: int = 4
    """Layers of the text encoder."""
    image_layers: int = 2
    """Layers that image tokens pass behind the tower."""
    merge: int = 1
    """Squares of so many patches in a row and column become one token behind the tower."""
    fused: int = 2
    """The last so many layers of both sides look at each other (FIBER)."""
    decoder_layers: int = 2
    """Layers of the decoder."""
    heads: int = 4
    """Attention heads, outside of the tower."""
    hidden: int = 256
    """Width of the feed-forwards, outside of the tower."""
    context: int = 256
    """Most tokens of a text."""
    dropout: float = 0.1
    """Dropout rate of what is added to the residual stream, outside of the tower."""
    queue: int = 4096
    """Features of earlier batches that are kept as negatives."""
    temperature: float = 0.07
    """Where the learned temperature of similarities begins."""
    momentum: float = 0.0
    """How slowly a second, untrained copy of the encoders follows, which then makes the features
    of the queue; 0 keeps none (FIBER), 0.995 is usual (ALBEF)."""
    slots: int = 32
    """Slots of the memory."""
    image_size: int = 224
    """Side in pixels of the images that it is trained on; a call takes any."""
    noise: float = 0.01
    """Standard deviation of the memory's observation noise."""
    addressing: Literal["ridge", "iteration"] = "ridge"
    """How the slots' keys are inverted: solved with noise, or by iterations without."""
    dinov2: tower.Config = field(default_factory=lambda: tower.PRESETS["base"])
    """The image tower."""

    def __post_init__(self) -> None:
        names = ("vocab", "dim", "layers", "image_layers", "decoder_layers", "heads", "hidden")
        for name in (*names, "merge", "context", "queue", "slots", "image_size"):
            within(f"model.{name}", getattr(self, name), 1)
        within("model.fused", self.fused, 0, min(self.layers, self.image_layers))
        within("model.temperature", self.temperature, 0.001, 1)
        within("model.noise", self.noise, 1e-6)
        for name in ("dropout", "momentum"):
            within(f"model.{name}", getattr(self, name), 0, 1, below=True)
        if self.dim % self.heads:
            raise Problem(
                f"bitgen: dim {self.dim} is not a multiple of {self.heads} heads",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )


PRESETS = {
    # Learns drawn scenes of 56 × 56 pixels on two cores in minutes.
    "tiny": Config(
        vocab=64,
        dim=64,
        layers=2,
        image_layers=1,
        fused=1,
        decoder_layers=2,
        heads=4,
        hidden=128,
        context=32,
        dropout=0.0,
        queue=256,
        slots=64,
        image_size=56,
        dinov2=tower.Config(dim=64, layers=2, heads=4, hidden=128, patch=14, image_size=56),
    ),
    "card": Config(),
}

# The card's training: AdamW, 2e-4 after 1,000 steps of warm-up, cosine to a tenth, batch 128
# accumulated twice.
_CARD = Recipe(
    data="coco_captions",
    tokenizer="gpt2",
    batch=128,
    accum=2,
    steps=23_000,
    eval_every=438,
    save_every=438,
    sample_every=0,
    valid_fraction=0.05,
    optim=Optim(
        peak_lr=2e-4,
        end_lr=2e-5,
        warmup=1000.0,
        weight_decay=0.02,
        clip=1.0,
    ),
)

RECIPES = {
    "tiny": replace(
        _CARD,
        data="shapes",
        tokenizer="chars",
        batch=64,
        accum=1,
        steps=2000,
        eval_every=500,
        save_every=500,
        optim=replace(_CARD.optim, peak_lr=2e-3, end_lr=1e-5, warmup=100.0),
    ),
    "card": _CARD,
}
