"""wigip: a grid of characters, cut into patches, read by a vision Transformer (seed 000)."""

from jaxmodels.lazy import lazy
from jaxmodels.wigip.config import PRESETS, RECIPES, Config

__all__ = [
    "ASSUMED",
    "PRESETS",
    "RECIPES",
    "SEED",
    "SHARDING",
    "STACKED",
    "WEIGHTS",
    "Config",
    "Model",
    "loss",
    "sizes",
    "targets",
]

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "loss": "model",
        "targets": "model",
        "SHARDING": "layout",
        "ASSUMED": "layout",
        "STACKED": "layout",
        "WEIGHTS": "layout",
        "SEED": "layout",
        "sizes": "layout",
    },
)
