"""charlm: a character-level Transformer with rotary attention and SwiGLU (seed 002)."""

from jaxmodels.charlm.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "BUFFERS",
    "PRESETS",
    "RECIPES",
    "SHARDING",
    "UPSTREAM",
    "WEIGHTS",
    "Config",
    "Model",
    "commit",
    "loss",
    "sizes",
]

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "loss": "model",
        "commit": "model",
        "SHARDING": "layout",
        "ASSUMED": "layout",
        "BUFFERS": "layout",
        "WEIGHTS": "layout",
        "UPSTREAM": "layout",
        "sizes": "layout",
    },
)
