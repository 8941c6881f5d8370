"""bitgen: texts and images together, with ternary weights and a memory (seed 004's promises)."""

from jaxmodels.bitgen.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "PRESETS",
    "RECIPES",
    "WHOLE",
    "Config",
    "Model",
    "commit",
    "loss",
]

__getattr__ = lazy(
    __name__,
    {
        "Model": "model",
        "loss": "objectives",
        "commit": "objectives",
        "WHOLE": "objectives",
        "SHARDING": "layout",
        "WEIGHTS": "layout",
        "sizes": "layout",
    },
)
