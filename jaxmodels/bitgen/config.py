"""Sizes and recipes of bitgen: what the card of seed 004 (BitGen Stage 1) promises."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxmodels.dinov2.config import PRESETS as TOWERS
from jaxmodels.dinov2.config import Config as TowerConfig
from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


def _tower(name: str) -> TowerConfig:
    """A published tower as transformers computes it: positions are interpolated by size."""
    return replace(TOWERS[name], interpolation="size")


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
    image_size: int = 224
    """Side in pixels of the images that the tower sees; others are resized to it."""
    dropout: float = 0.1
    """Dropout rate of what is added to the residual stream, outside of the tower."""
    queue: int = 4096
    """Features of earlier batches that are kept as negatives. What was made by an encoder that has
    moved since is no good negative: the faster it learns, the fewer."""
    queue_inputs: bool = False
    """Whether the queue keeps texts and images too, among which matching finds hard negatives
    (FIBER's code). It takes their memory, and the encoders run on twice as many."""
    temperature: float = 0.07
    """Where the learned temperature of similarities begins."""
    momentum: float = 0.0
    """How slowly a second, untrained copy of the encoders follows, which then makes the features
    of the queue; 0 keeps none (FIBER), 0.995 is usual (ALBEF)."""
    weights: tuple[float, float, float, float] = (1.0, 0.5, 0.5, 0.1)
    """What contrast, matching, writing and the memory's divergence count in the loss."""
    slots: int = 32
    """Slots of the memory."""
    noise: float = 0.01
    """Standard deviation of the memory's observation noise."""
    addressing: Literal["ridge", "iteration"] = "ridge"
    """How the slots' keys are inverted: solved with noise, or by iterations without."""
    dinov2: TowerConfig = field(default_factory=lambda: _tower("base"))
    """The image tower."""

    def __post_init__(self) -> None:
        names = ("vocab", "dim", "layers", "image_layers", "decoder_layers", "heads", "hidden")
        for name in (*names, "merge", "image_size", "context", "queue", "slots", "image_size"):
            within(f"model.{name}", getattr(self, name), 1)
        within("model.fused", self.fused, 0, min(self.layers, self.image_layers))
        within("model.temperature", self.temperature, 0.001, 1)
        within("model.noise", self.noise, 1e-6)
        for weight in self.weights:
            within("model.weights", weight, 0)
        for name in ("dropout", "momentum"):
            within(f"model.{name}", getattr(self, name), 0, 1, below=True)
        if self.dim % self.heads:
            raise Problem(
                f"bitgen: dim {self.dim} is not a multiple of {self.heads} heads",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )
        if self.image_size % (self.merge * self.dinov2.patch):
            raise Problem(
                f"bitgen: images of {self.image_size} pixels are not filled by squares of "
                f"{self.merge} patches of {self.dinov2.patch} pixels",
                fix="change --model.image-size, --model.merge or --model.dinov2.patch",
                exit_code=USAGE,
            )


PRESETS = {
    # Learns drawn scenes of 56 × 56 pixels on two cores in minutes: small patches, because a shape
    # is to be known wherever it lies, and four of them a token behind the tower.
    "tiny": Config(
        vocab=64,
        dim=64,
        layers=2,
        image_layers=1,
        fused=1,
        merge=2,
        heads=4,
        hidden=128,
        context=20,
        image_size=56,
        dropout=0.0,
        # A batch: while features still move fast, older ones pull back instead of pushing apart.
        queue=32,
        # Writing is the only objective that needs to know every shape, and contrast's gradient is
        # many times as large.
        weights=(1.0, 0.5, 3.0, 0.1),
        slots=64,
        dinov2=TowerConfig(dim=64, layers=3, heads=4, hidden=128, patch=7, image_size=56),
    ),
    # The card's 5 to 10 million parameters, two thirds of them ternary, for drawn scenes. Features
    # of 192 numbers can tell so many facts in the memory from each other.
    "mini": Config(
        vocab=64,
        dim=192,
        layers=3,
        image_layers=2,
        fused=1,
        merge=2,
        decoder_layers=3,
        heads=6,
        hidden=512,
        context=20,
        image_size=56,
        dropout=0.0,
        queue=32,
        weights=(1.0, 0.5, 3.0, 0.1),
        slots=256,
        # Features that are all alike, as a new model's are, have addresses whose gram is 32 · 256
        # at most, which float32 can solve with 0.02² added to it, and not with 0.01².
        noise=0.02,
        dinov2=TowerConfig(dim=192, layers=4, heads=6, hidden=512, patch=7, image_size=56),
    ),
    # The card's.
    "card": Config(),
    # For a Raspberry Pi: the smallest published tower, which is nine tenths of the work, four of
    # its patches a token, half of the card's context and queue. All but the tower and the
    # embedding is ternary: 1.4 million weights in 0.4 MB when packed.
    "edge": Config(
        merge=2,
        context=128,
        queue=2048,
        dinov2=_tower("small"),
    ),
}

# Without weight decay: what is no matrix, and what a gradient may not reach.
NO_DECAY = ("*/scale", "*/bias", "*/gate", "temperature", "memory/*", "vision/mask")

# The card's training: AdamW, 2e-4 after 1,000 steps of warm-up, a cosine that stops at a tenth,
# batch 128 accumulated twice, patience 5, 5% held out. 50 epochs of COCO's 112,100 images are
# 21,850 steps. Without weight decay on norms, which the card does not tell.
_CARD = Recipe(
    data="coco_captions",
    tokenizer="gpt2",
    batch=128,
    accum=2,
    steps=21_850,
    dtype="bfloat16",
    valid_fraction=0.05,
    eval_every=437,
    patience=5,
    save_every=437,
    sample_every=0,
    optim=Optim(
        peak_lr=2e-4,
        min_lr=2e-5,
        warmup=1000.0,
        weight_decay=0.02,
        no_decay=NO_DECAY,
        clip=1.0,
    ),
)

_SHAPES = replace(
    _CARD,
    data="shapes",
    tokenizer="words",
    batch=32,
    accum=1,
    steps=4000,
    dtype="float32",
    eval_every=500,
    patience=0,
    save_every=500,
    sample_every=500,
    optim=replace(
        _CARD.optim,
        name="muon",
        muon_rms=0.5,
        peak_lr=1e-3,
        min_lr=0.0,
        end_lr=1e-5,
        warmup=100.0,
        b2=0.99,
        # A step of Adam is a fortieth of a temperature of 0.06.
        lr_scale=(("temperature", 0.1),),
    ),
)

RECIPES = {
    "tiny": _SHAPES,
    # Fewer steps, since each takes several times as long. At one rms, the norm of Muon's step grows
    # with the root of the width, which is three times tiny's. Numbers in the keys of so many slots
    # are near 0.004, so Adam's step is too long for them.
    "mini": replace(
        _SHAPES,
        steps=2500,
        optim=replace(
            _SHAPES.optim,
            muon_rms=0.35,
            lr_scale=(("temperature", 0.1), ("memory/keys", 0.1)),
        ),
    ),
    "card": _CARD,
    # The tower stays as it was published.
    "edge": replace(_CARD, optim=replace(_CARD.optim, lr_scale=(("vision/*", 0.0),))),
}
