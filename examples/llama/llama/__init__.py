"""llama: RMSNorm, rotary halves, grouped queries, SwiGLU and a head of its own."""

from jaxmodels.lazy import lazy
from llama.config import PRESETS, RECIPES, Config

TWIN = "llama.twin"
_LAYOUT = dict.fromkeys(("SHARDING", "WEIGHTS", "BUFFERS", "sizes"), "layout")
_LAZY = {"Model": "model", "loss": "model", **_LAYOUT}
__all__ = ["PRESETS", "RECIPES", "TWIN", "Config", *_LAZY]
__getattr__ = lazy(__name__, _LAZY)
