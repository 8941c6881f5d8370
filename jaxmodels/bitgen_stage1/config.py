"""Sizes and recipes of bitgen_stage1. Source: seed 004 (euhidaman/BitGen, MIT) and its card."""

from dataclasses import dataclass, field, replace

from jaxmodels.dinov2.config import PRESETS as TOWERS
from jaxmodels.dinov2.config import Config as TowerConfig
from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


def _tower(name: str) -> TowerConfig:
    """A tower as transformers computes it: positions are interpolated by size."""
    return replace(TOWERS[name], interpolation="size")


@dataclass(frozen=True)
class Config:
    """Sizes of one bitgen_stage1.

    Raises:
        Problem: (usage) a size is out of range, or two sizes are incompatible.
    """

    vocab: int = 50_257
    """Rows of the embedding and of the decoder's head; training sets it from the vocabulary."""
    dim: int = 128
    """Width of everything but the tower."""
    layers: int = 4
    """Blocks of the encoder."""
    heads: int = 4
    """Attention heads of encoder and decoder."""
    hidden: int = 256
    """Width of the feed-forwards of encoder and decoder."""
    decoder_layers: int = 2
    """Blocks of the decoder."""
    context: int = 256
    """Longest text, in tokens."""
    slots: int = 32
    """Slots of the episodic memory."""
    queue: int = 4096
    """Number of features of earlier images and texts that are kept as negatives."""
    image_size: int = 224
    """Side in pixels to which images of any shape are resized."""
    dropout: float = 0.1
    """Dropout rate, except in the tower."""
    dinov2: TowerConfig = field(default_factory=lambda: _tower("base"))
    """The image tower."""

    def __post_init__(self) -> None:
        for name in (
            "vocab", "dim", "layers", "heads", "hidden", "decoder_layers", "context", "slots",
            "queue", "image_size",
        ):  # fmt: skip
            within(f"model.{name}", getattr(self, name), 1)
        within("model.dropout", self.dropout, 0, 1, below=True)
        if self.dim % self.heads:
            raise Problem(
                f"bitgen_stage1: dim {self.dim} is not a multiple of {self.heads} heads",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )
        tower = self.dinov2
        if (tower.mlp, tower.registers, tower.interpolation) != ("gelu", 0, "size"):
            raise Problem(
                "bitgen_stage1: its tower is DINOv2 with GELU, without registers, whose positions "
                "are interpolated by size",
                why=f"this one has mlp = {tower.mlp}, registers = {tower.registers}, "
                f"interpolation = {tower.interpolation}",
                fix="leave those settings out",
                exit_code=USAGE,
            )
        if self.image_size % self.dinov2.patch:
            raise Problem(
                f"bitgen_stage1: an image size of {self.image_size} is not a multiple of the "
                f"tower's patch of {self.dinov2.patch}",
                fix="change --model.image-size or --model.dinov2.patch",
                exit_code=USAGE,
            )


PRESETS = {
    "tiny": Config(
        vocab=64, dim=32, layers=2, heads=2, hidden=64, decoder_layers=1, context=32, slots=8,
        queue=64, image_size=56, dropout=0.0, dinov2=_tower("tiny"),
    ),
    # The seed's card.
    "card": Config(),
}  # fmt: skip

# Parameters without a gradient, which torch's AdamW skips; ours does only if they are named, or
# weight decay would change them.
DEAD = (
    "vision/mask",
    "fusion/text_pooler/*",
    "fusion/image_pooler/*",
    "decoder/blocks/{i}/norm2/*",
)

# The seed's card and code. 50 epochs of 112,100 captions are 21,850 steps. The cosine goes to 0,
# but the rate never below a tenth of the peak. Weight decay applies to all parameters with a
# gradient. The card's mixed precision is float16.
_SEED = Recipe(
    data="coco_captions",
    tokenizer="gpt2",
    batch=128,
    accum=2,
    steps=21_850,
    dtype="bfloat16",
    valid_fraction=0.05,
    eval_every=437,
    save_every=1000,
    sample_every=0,
    optim=Optim(
        peak_lr=2e-4,
        min_lr=2e-5,
        warmup=1000.0,
        b1=0.9,
        b2=0.999,
        weight_decay=0.02,
        no_decay=DEAD,
        clip=1.0,
    ),
)

RECIPES = {
    "tiny": replace(
        _SEED,
        data="shapes",
        tokenizer="chars",
        batch=16,
        accum=1,
        steps=200,
        dtype="float32",
        eval_every=100,
        save_every=100,
        optim=replace(_SEED.optim, peak_lr=2e-3, min_lr=2e-4, warmup=20.0),
    ),
    "card": _SEED,
}
