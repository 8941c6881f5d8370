"""What a check found."""

from typing import Any


class Report(dict):
    """A dict that goes to JSON as it is; its keys can also be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
