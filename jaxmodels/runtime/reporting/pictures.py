"""Figures of matplotlib as files, independent of its configuration in the environment."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxmodels.cli import say, visible


def picture(name: str, plot: Callable[[], Any], dpi: int = 100, form: str = "png") -> bytes | None:
    """A matplotlib figure as the content of a file; None if there is nothing to draw.

    A failure is printed, not raised.

    Args:
        name: what it shows.
        plot: returns the figure, or None.
        dpi: resolution.
        form: png or svg.
    """
    content = io.BytesIO()
    try:
        with defaults():
            if (figure := plot()) is None:
                return None
            figure.savefig(content, format=form, dpi=dpi)
    except Exception as error:
        say(f"no plot of {name}: {type(error).__name__}: {error}")
        return None
    return content.getvalue()


@contextmanager
def defaults() -> Iterator[None]:
    """Within its block matplotlib has its default settings, and does not warn of missing glyphs.

    Jupyter's MPLBACKEND may name a backend that this environment lacks, and then even the import
    fails; writing files needs none.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.simplefilter("ignore")
        yield


def title(text: str) -> str:
    """Untrusted text as a title: control characters and dollar signs (formulas) are escaped."""
    return visible(text, keep="\n").replace("$", r"\$")
