"""wikigpt: GPT-2's Transformer, learned positions and a tied head (seed 001)."""

from jaxmodels.lazy import lazy
from jaxmodels.wikigpt.config import PRESETS, RECIPES, Config

__all__ = [
    "ALSO_TIED",
    "ASSUMED",
    "BUFFERS",
    "GGUF",
    "OTHER_HEADS",
    "PREFIX",
    "PRESETS",
    "RECIPES",
    "SHARDING",
    "TIED",
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
        "WEIGHTS": "layout",
        "UPSTREAM": "layout",
        "GGUF": "layout",
        "TIED": "layout",
        "ALSO_TIED": "layout",
        "ASSUMED": "layout",
        "BUFFERS": "layout",
        "OTHER_HEADS": "layout",
        "PREFIX": "layout",
        "sizes": "layout",
    },
)
