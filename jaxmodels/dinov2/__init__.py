"""dinov2: an image tower, a vision Transformer that learned without labels (Oquab et al. 2023)."""

from jaxmodels.dinov2.config import PRESETS, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ORIGINAL",
    "PRESETS",
    "SAVED",
    "SHARDING",
    "WEIGHTS",
    "Config",
    "Model",
    "sizes",
]

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "SHARDING": "layout",
        "WEIGHTS": "layout",
        "SAVED": "layout",
        "ORIGINAL": "layout",
        "sizes": "layout",
    },
)
