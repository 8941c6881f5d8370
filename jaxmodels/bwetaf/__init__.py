"""bwetaf: a token-level Transformer whose embeddings are rotated by position (seed 003)."""

from jaxmodels.bwetaf.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "PRESETS",
    "RECIPES",
    "SHARDING",
    "UPSTREAM",
    "WEIGHTS",
    "Config",
    "Model",
    "loss",
    "sizes",
]

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "loss": "model",
        "SHARDING": "layout",
        "ASSUMED": "layout",
        "WEIGHTS": "layout",
        "UPSTREAM": "layout",
        "sizes": "layout",
    },
)
