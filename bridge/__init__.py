"""Reads and writes checkpoints, in our own and other programs' formats.

model = bridge.load(path)                   # a checkpoint in any format, as an nnx module
bridge.save(model, path)                    # writes a model directory
bridge.convert(src, dst, to="safetensors")  # from any format to any other
bridge.inspect(path); bridge.verify(path, against=None); bridge.diff(a, b)
bridge.torch.load(path)                     # the same model as a torch.nn.Module
"""

from importlib import import_module
from typing import Any

from jaxmodels.lazy import lazy

__all__ = [
    "convert",
    "diff",
    "inspect",
    "load",
    "open_checkpoint",
    "pull",
    "push",
    "save",
    "torch",
    "verify",
]

_function = lazy(
    __name__,
    {
        "convert": "conversion.convert",
        "diff": "checks.difference",
        "inspect": "checks.inspection",
        "load": "checkpoint.loading",
        "open_checkpoint": "checkpoint.opening",
        "pull": "hub.pull",
        "push": "hub.push",
        "save": "conversion.save",
        "verify": "checks.verification",
    },
)


def __getattr__(name: str) -> Any:
    return import_module("bridge.torch") if name == "torch" else _function(name)


def __dir__() -> list[str]:
    return __all__
