"""Sizes of DINOv2. Source: Oquab et al. 2023 (arXiv:2304.07193), registers: Darcet et al. 2023
(arXiv:2309.16588); the sizes are those of the published checkpoints."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.layers.resize import Interpolation


@dataclass(frozen=True)
class Config:
    """Sizes of one DINOv2.

    Raises:
        Problem: (usage) a size is out of its range, or sizes do not go together.
    """

    dim: int = 768
    """Width of the residual stream."""
    layers: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The feed-forward: two layers with an exact GELU, or SwiGLU."""
    hidden: int = 3072
    """Width of the feed-forward."""
    patch: int = 14
    """Side of a patch, in pixels."""
    image_size: int = 518
    """Side of the images that the positions were learned on, in pixels."""
    registers: int = 0
    """Tokens beside the patches that belong to no place; the published models have 0 or 4."""
    interpolation: Interpolation = "scale_offset"
    """How positions are brought to images of other sizes (`layers/resize.py`). The published code
    does it by "scale_offset" without registers and "antialias" with them; transformers by "size"
    and "antialias"."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "hidden", "patch", "image_size"):
            within(f"model.{name}", getattr(self, name), 1)
        within("model.registers", self.registers, 0)
        if self.dim % self.heads:
            raise Problem(
                f"dinov2: dim {self.dim} is not a multiple of {self.heads} heads",
                fix="change --model.dim or --model.heads",
                exit_code=USAGE,
            )
        if self.image_size % self.patch:
            raise Problem(
                f"dinov2: an image size of {self.image_size} is not a multiple of the patch of "
                f"{self.patch}",
                fix="change --model.image-size or --model.patch",
                exit_code=USAGE,
            )

    @property
    def side(self) -> int:
        """Patches along a side of the images that the positions were learned on."""
        return self.image_size // self.patch


_PLAIN = {
    "tiny": Config(dim=32, layers=2, heads=2, hidden=128, image_size=56),
    "small": Config(dim=384, heads=6, hidden=1536),
    "base": Config(),
    "large": Config(dim=1024, layers=24, heads=16, hidden=4096),
    "giant": Config(dim=1536, layers=40, heads=24, mlp="swiglu", hidden=4096),
}

PRESETS = _PLAIN | {
    f"{name}-reg": replace(config, registers=4, interpolation="antialias")
    for name, config in _PLAIN.items()
}
