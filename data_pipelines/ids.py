"""Checks that all tokenisers share."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import MISMATCH, DataProblem


def checked_ids(ids: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Ids as int64 [n], from any sequence or array.

    Raises:
        DataProblem: (mismatch) an id is not in a vocabulary of `size`.
    """
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    outside = array[(array < 0) | (array >= size)]
    if len(outside):
        raise DataProblem(
            f"token id {outside[0]} is not in the vocabulary of {size}",
            fix="use the vocabulary that the tokens were made with",
            exit_code=MISMATCH,
        )
    return array


def without_surrogates(text: str) -> str:
    """The text in valid Unicode: surrogate pairs combined, lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
