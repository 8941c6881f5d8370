"""Reads untrusted files in a process with limits; only tensors and plain values come back.

sandbox.read("torch", path)   # what the file holds, its tensors unread
sandbox.names(path)           # the names in a zip
"""

from typing import TYPE_CHECKING

from jaxmodels.lazy import lazy

if TYPE_CHECKING:
    from bridge.sandbox.client import names, read

__all__ = ["names", "read"]

__getattr__ = lazy(__name__, {"names": "client", "read": "client"})
