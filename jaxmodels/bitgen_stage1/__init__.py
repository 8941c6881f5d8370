"""bitgen_stage1: captions and images as Stage 1 of BitGen was published (seed 004)."""

from jaxmodels.bitgen_stage1.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "CARRIED",
    "EVERY_PASS",
    "PRESETS",
    "RECIPES",
    "SEED",
    "SHARDING",
    "TERNARY",
    "WEIGHTS",
    "WHOLE",
    "WRITTEN",
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
        "loss": "objective",
        "commit": "objective",
        "EVERY_PASS": "objective",
        "WHOLE": "objective",
        "WRITTEN": "layout",
        "ASSUMED": "layout",
        "CARRIED": "layout",
        "SHARDING": "layout",
        "TERNARY": "layout",
        "WEIGHTS": "layout",
        "SEED": "layout",
        "sizes": "layout",
    },
)
