"""Sizes and recipes of wigip. Source: seed 000 (nurric-ai/Wigip_v2_1.7B_ViT)."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Optim, Recipe


@dataclass(frozen=True)
class Config:
    """Sizes of one wigip.

    Raises:
        Problem: (usage) a size is out of range, or two sizes are incompatible.
    """

    vocab: int = 256
    """Size of the vocabulary. The default is a placeholder: training sets it from the data."""
    side: int = 180
    """Side of the grid that the text fills, in characters."""
    patch: int = 4
    """Side of a patch, in characters; the embedding of a character has patch² numbers."""
    dim: int = 2496
    """Width of the residual stream."""
    layers: int = 24
    """Number of blocks."""
    heads: int = 32
    """Attention heads."""
    objective: Literal["next_char", "dense"] = "next_char"
    """`next_char`: predict the one character after the window (the seed's); `dense`: every
    character from those before it. The parameters have the same shapes, but other meanings."""
    images: bool = False
    """Phase 2: the same trunk also reads pictures of side × side pixels, with captions of at most
    side × patch characters."""
    image_weight: float = 1.0
    """In training, what a batch of images counts beside a batch of text."""

    def __post_init__(self) -> None:
        for name in ("vocab", "side", "patch", "dim", "layers", "heads"):
            within(f"model.{name}", getattr(self, name), 1)
        within("model.image_weight", self.image_weight, 0)
        if self.side % self.patch:
            raise Problem(
                f"wigip: a side of {self.side} is not a multiple of the patch of {self.patch}",
                fix="change --model.side or --model.patch",
                exit_code=USAGE,
            )
        if self.dim % self.heads:
            raise Problem(
                f"wigip: dim {self.dim} is not a multiple of {self.heads} heads",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )

    @property
    def context(self) -> int:
        """Characters of a window, which fills the grid."""
        return self.side**2

    @property
    def patches(self) -> int:
        """Patches of a window."""
        return (self.side // self.patch) ** 2

    @property
    def image_size(self) -> int | None:
        """Side of the pictures in pixels; None without images."""
        return self.side if self.images else None

    @property
    def caption(self) -> int | None:
        """Characters of the longest caption, a row of patches; None without images."""
        return self.side * self.patch if self.images else None

    @property
    def area(self) -> int:
        """Characters of a patch."""
        return self.patch**2


PRESETS = {
    "tiny": Config(vocab=64, side=16, dim=64, layers=2, heads=2),
    # Phase 2 in minutes: pictures of 32 × 32 pixels, captions of 128 characters.
    "tiny-images": Config(
        vocab=64,
        side=32,
        dim=64,
        layers=3,
        heads=4,
        objective="dense",
        images=True,
        image_weight=0.1,
    ),
    # Sizes of our own: GPT-2's smallest trunk. A window is 6,400 characters in 400 patches.
    "125m": Config(side=80, dim=768, layers=12, heads=12),
    # The seed's. Its vocabulary, of the first 1,000 documents of C4, has no published size.
    "1.7b": Config(),
}

# The seed's code. It declares an accumulation of 8 and never uses it; here it is used.
_SEED = Recipe(
    data="c4",
    batch=2,
    accum=8,
    steps=610_000,
    dtype="bfloat16",
    remat="full",
    eval_every=1000,
    save_every=1000,
    sample_every=1000,
    optim=Optim("sgd", peak_lr=1e-4, end_lr=1e-5, warmup=2000.0, weight_decay=0.0),
)

RECIPES = {
    "tiny": replace(
        _SEED,
        data="pydoc",
        batch=16,
        accum=1,
        steps=200,
        dtype="float32",
        remat="none",
        eval_every=100,
        save_every=100,
        sample_every=100,
        optim=Optim(peak_lr=3e-3, warmup=20.0),
    ),
    # With Muon, as bitgen:tiny learns the same scenes.
    "tiny-images": replace(
        _SEED,
        data="mix:1*pydoc,6*shapes",
        batch=32,
        accum=1,
        steps=1400,
        dtype="float32",
        remat="none",
        eval_every=350,
        save_every=350,
        sample_every=350,
        optim=Optim(
            "muon",
            muon_rms=0.5,
            peak_lr=1e-3,
            end_lr=1e-5,
            warmup=50.0,
        ),
    ),
    "125m": _SEED,
    "1.7b": _SEED,
}
