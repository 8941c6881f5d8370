"""wigip: a grid of characters, cut into patches, read by a vision Transformer (seed 000)."""

from jaxmodels.lazy import lazy
from jaxmodels.wigip.config import PRESETS, RECIPES, Config

__all__ = [
    "ADDED",
    "ASSUMED",
    "PRESETS",
    "RECIPES",
    "SCANNED",
    "SHARDING",
    "UPSTREAM",
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
        "ADDED": "layout",
        "ASSUMED": "layout",
        "SCANNED": "layout",
        "WEIGHTS": "layout",
        "UPSTREAM": "layout",
        "sizes": "layout",
    },
)
