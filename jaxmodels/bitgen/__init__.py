"""bitgen: texts and images together, with ternary weights and a memory (seed 004's promises)."""

from jaxmodels.bitgen.config import PRESETS, RECIPES, Config
from jaxmodels.lazy import lazy

__all__ = [
    "ASSUMED",
    "CARRIED",
    "CROSS_ROW_LOSS",
    "INIT_FROM",
    "INT8",
    "LORA",
    "PRESETS",
    "RECIPES",
    "SHARDING",
    "TERNARY",
    "WEIGHTS",
    "Config",
    "Model",
    "commit",
    "compress",
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
        "compress": "compressed",
        "write": "remember",
        "read": "remember",
        "forget": "remember",
        "CROSS_ROW_LOSS": "objectives",
        "ASSUMED": "layout",
        "CARRIED": "layout",
        "INIT_FROM": "layout",
        "INT8": "layout",
        "LORA": "layout",
        "SHARDING": "layout",
        "TERNARY": "layout",
        "WEIGHTS": "layout",
        "sizes": "layout",
    },
)
