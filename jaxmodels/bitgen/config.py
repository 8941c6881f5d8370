"""Sizes and recipes of bitgen, as the model card of seed 004 (BitGen Stage 1) describes them."""

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
        Problem: (usage) a size is out of range, or two sizes are incompatible.
    """

    vocab: int = 50_257
    """Rows of the embedding, which is also the decoder's head; training sets it from the data."""
    dim: int = 128
    """Width of text, image tokens behind the tower, features and codes."""
    layers: int = 4
    """Layers of the text encoder."""
    image_layers: int = 2
    """Layers of the image encoder after the tower."""
    merge: int = 1
    """Side of the squares of patches that are merged into one token after the tower."""
    fused: int = 2
    """Number of last layers of both encoders with cross-attention (FIBER)."""
    decoder_layers: int = 2
    """Layers of the decoder."""
    heads: int = 4
    """Attention heads, except in the tower."""
    hidden: int = 256
    """Width of the feed-forwards, except in the tower."""
    context: int = 256
    """Maximum number of tokens of a text."""
    image_size: int = 224
    """Side in pixels of the images that the tower sees; others are resized to it."""
    dropout: float = 0.1
    """Dropout rate of what is added to the residual stream, except in the tower."""
    queue: int = 4096
    """Features of earlier batches that are kept as negatives. They go stale as the encoders learn:
    the higher the learning rate, the shorter the queue should be."""
    queue_inputs: bool = False
    """Whether the queue keeps texts and images too, among which matching finds hard negatives
    (FIBER's code). It takes their memory, and the encoders run on twice as many."""
    temperature: float = 0.07
    """Initial value of the learned temperature."""
    momentum: float = 0.0
    """Decay of a running average of the encoders, which then makes the features of the queue; 0:
    no such copy (FIBER); 0.995 is usual (ALBEF)."""
    weights: tuple[float, float, float, float] = (1.0, 0.5, 0.5, 0.1)
    """Weights of the losses: contrast, matching, captioning, the memory's divergence."""
    slots: int = 32
    """Slots of the memory."""
    noise: float = 0.01
    """Standard deviation of the memory's observation noise."""
    addressing: Literal["ridge", "iteration"] = "ridge"
    """How addresses are computed: `ridge` solves with the noise, `iteration` approaches the
    pseudo-inverse, without it."""
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
    # Learns drawn scenes of 56 × 56 pixels on two cores in minutes. Patches are small, to recognise
    # a shape wherever it is, and four of them are merged into one token after the tower.
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
        # One batch: while the encoders still change fast, older features are harmful.
        queue=32,
        # Captioning is the only objective that needs every shape, and the gradient of contrast is
        # many times larger.
        weights=(1.0, 0.5, 3.0, 0.1),
        slots=64,
        dinov2=TowerConfig(dim=64, layers=3, heads=4, hidden=128, patch=7, image_size=56),
    ),
    # The card's 5 to 10 million parameters, two thirds of them ternary, for drawn scenes. Features
    # of 192 numbers keep that many facts in the memory apart.
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
        # If all features are alike, as in a new model, the gram of their addresses is up to
        # 32 · 256, which float32 can solve with 0.02² added to it, but not with 0.01².
        noise=0.02,
        dinov2=TowerConfig(dim=192, layers=4, heads=6, hidden=512, patch=7, image_size=56),
    ),
    # The card's.
    "card": Config(),
    # For a Raspberry Pi: the smallest published tower (nine tenths of the work), four of its
    # patches merged into a token, half of the card's context and queue. Everything but the tower
    # and the embedding is ternary: 1.4 million weights in 0.4 MB when packed.
    "edge": Config(
        merge=2,
        context=128,
        queue=2048,
        dinov2=_tower("small"),
    ),
}

# Without weight decay: parameters that are not matrices, or may have no gradient.
NO_DECAY = ("*/scale", "*/bias", "*/gate", "temperature", "memory/*", "vision/mask")

# The card's training: AdamW, 2e-4 after 1,000 steps of warm-up, a cosine that stops at a tenth,
# batch 128 accumulated twice, patience 5, 5% held out. 50 epochs of COCO's 112,100 images are
# 21,850 steps. No weight decay on norms, about which the card says nothing.
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
        # A step of Adam would be a fortieth of a temperature of 0.06.
        lr_scale=(("temperature", 0.1),),
    ),
)

RECIPES = {
    "tiny": _SHAPES,
    # Fewer steps, since each takes several times as long. At a given rms, the norm of Muon's step
    # grows with the square root of the width, three times that of tiny. Entries of the slots' keys
    # are near 0.004, so Adam's step is too large for them.
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
