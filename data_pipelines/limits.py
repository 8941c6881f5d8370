"""How much of what somebody else may have made is read into memory at once."""

import os

from data_pipelines.errors import USAGE, DataProblem

DOCUMENT_VARIABLE = "JAXMODELS_MAX_DOCUMENT_MB"
"""Environment variable that sets the limit of a document, in MiB."""

_DOCUMENT = 64  # MiB; the longest books have 10

MAX_PAGE = 1 << 28
"""Bytes that a page of a Parquet file may unpack to; writers make pages of about a million."""

MAX_FOOTER = 1 << 25
"""Bytes of a Parquet file's footer."""

MAX_RATIO, FREE_OF_RATIO = 1000, 1 << 28
"""A row group may unpack to so many times its size in the file, and to so many bytes anyway."""

MAX_MANIFEST = 1 << 28
"""Bytes of a manifest.json, which names every file that was read."""

MAX_CAPTIONS = 1 << 29
"""Bytes of a file of captions that somebody else wrote; COCO's has 92 million."""

MAX_PREPARED = 1 << 32
"""Bytes of captions.jsonl, which `data prepare` writes."""

MAX_IMAGE = 1 << 29
"""Bytes of an image file: the most pixels that are read, uncompressed, with 8 bytes each."""

MAX_FULL_SCAN = 1 << 35
"""Bytes of a token file that is read through when it is opened; of a larger one, samples are."""


def max_document() -> int:
    """Bytes that one document may have: a line of JSON, a row of a table.

    Raises:
        DataProblem: (usage) the environment variable holds no number.
    """
    given = os.environ.get(DOCUMENT_VARIABLE, "")
    if not given:
        return _DOCUMENT << 20
    if given.isascii() and given.isdigit() and 0 < int(given) <= 1 << 20:
        return int(given) << 20
    raise DataProblem(
        f"{DOCUMENT_VARIABLE} is {given!r}",
        why="it is the most MiB that a document may have, a whole number from 1 on",
        exit_code=USAGE,
    )


def too_long(what: str, where: str) -> DataProblem:
    """The error for a document over the limit; `what` it is: a line, a row."""
    limit = max_document()
    return DataProblem(
        f"this {what} is too long",
        where=where,
        why=f"a document may have {limit >> 20:,} MiB ({limit:,} bytes)",
        fix=f"split it, or allow more: {DOCUMENT_VARIABLE}={(limit >> 20) * 4}",
    )
