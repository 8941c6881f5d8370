"""Pictures that matplotlib draws, whatever the environment has made of matplotlib."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxmodels.cli import say, visible


def picture(name: str, plot: Callable[[], Any], dpi: int = 100, form: str = "png") -> bytes | None:
    """A figure of matplotlib as a file's content; None where there is nothing to see.

    A picture that cannot be drawn is said, and fails nothing else.

    Args:
        name: what it shows.
        plot: draws the figure, or returns None.
        dpi: its resolution.
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
    """Within its block matplotlib has its own settings, and says nothing of missing glyphs.

    Jupyter's MPLBACKEND names a backend that another environment does not have, and then not even
    the import succeeds; a file needs none.
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
    """Anybody's text as a title: no control characters, and no formula begins at a dollar sign."""
    return visible(text, keep="\n").replace("$", r"\$")
