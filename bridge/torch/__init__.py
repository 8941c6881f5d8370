"""The PyTorch side: a package for each architecture, and loading into its module.

`bridge/core/twins.py` says what a package exports.
"""

from jaxmodels.lazy import lazy

__all__ = ["load"]

__getattr__ = lazy(__name__, {"load": "loading"})
