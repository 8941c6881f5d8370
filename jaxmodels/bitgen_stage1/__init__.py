"""bitgen_stage1: captions and images as Stage 1 of BitGen was published (seed 004)."""

from jaxmodels.bitgen_stage1.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "COMMITTED",
    "CROSS_ROW_LOSS",
    "EVERY_PASS",
    "INIT_FROM",
    "PRESETS",
    "RECIPES",
    "SHARDING",
    "TERNARY",
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
        "loss": "objective",
        "commit": "objective",
        "EVERY_PASS": "objective",
        "CROSS_ROW_LOSS": "objective",
        "COMMITTED": "layout",
        "ASSUMED": "layout",
        "INIT_FROM": "layout",
        "SHARDING": "layout",
        "TERNARY": "layout",
        "WEIGHTS": "layout",
        "UPSTREAM": "layout",
        "sizes": "layout",
    },
)
