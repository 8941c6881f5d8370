"""bitgen: texts and images together, with ternary weights and a memory (seed 004's promises)."""

from jaxmodels.bitgen.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "CARRIED",
    "PRESETS",
    "RECIPES",
    "SHARDING",
    "TERNARY",
    "WEIGHTS",
    "WHOLE",
    "Config",
    "Model",
    "commit",
    "counted",
    "forget",
    "loss",
    "pack",
    "read",
    "sizes",
    "write",
]

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "loss": "objectives",
        "commit": "objectives",
        "counted": "objectives",
        "pack": "bitlinear",
        "write": "remember",
        "read": "remember",
        "forget": "remember",
        "WHOLE": "objectives",
        "ASSUMED": "layout",
        "CARRIED": "layout",
        "SHARDING": "layout",
        "TERNARY": "layout",
        "WEIGHTS": "layout",
        "sizes": "layout",
    },
)
