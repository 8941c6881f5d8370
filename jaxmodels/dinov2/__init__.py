"""dinov2: an image tower, a vision Transformer that learned without labels (Oquab et al. 2023)."""

from jaxmodels.dinov2.config import PRESETS, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "OTHER_HEADS",
    "PART_OF",
    "PRESETS",
    "SAVED",
    "SHARDING",
    "UNREAD",
    "UPSTREAM",
    "WEIGHTS",
    "Config",
    "Model",
    "sizes",
]

PART_OF = ("bitgen", "bitgen_stage1")
"""The architectures that hold it; it has no loss of its own."""

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "SHARDING": "layout",
        "WEIGHTS": "layout",
        "SAVED": "layout",
        "UPSTREAM": "layout",
        "UNREAD": "layout",
        "OTHER_HEADS": "layout",
        "ASSUMED": "layout",
        "sizes": "layout",
    },
)
