"""Limits on what is read into memory from files that may be malicious."""

import os

from data_pipelines.errors import USAGE, DataProblem

DOCUMENT_VARIABLE = "JAXMODELS_MAX_DOCUMENT_MB"
"""Environment variable that sets the limit of a document, in MiB."""

_DOCUMENT = 64  # MiB; the longest books have 10

MAX_PAGE = 1 << 28
"""Uncompressed bytes of a page of a Parquet file; writers make pages of about a million."""

MAX_FOOTER = 1 << 25
"""Bytes of a Parquet file's footer."""

MAX_RATIO, FREE_OF_RATIO = 1000, 1 << 28
"""How far a row group may unpack: a multiple of its size in the file, or this number of bytes."""

MAX_MANIFEST = 1 << 28
"""Bytes of a manifest.json, which lists every file of the source."""

MAX_CAPTIONS = 1 << 29
"""Bytes of a user's file of captions; COCO's has 92 million."""

MAX_PREPARED = 1 << 32
"""Bytes of captions.jsonl or images.bin, written by `data prepare`."""

MAX_IMAGE = 1 << 29
"""Bytes of an image file: `images.MAX_PIXELS`, uncompressed, with 8 bytes each."""

MAX_FULL_SCAN = 1 << 35
"""Bytes of a token file that is read in full when it is opened; a larger one is sampled."""


def max_document() -> int:
    """Largest document in bytes: a line of JSON, a row of a table.

    Raises:
        DataProblem: (usage) the environment variable is not a valid number.
    """
    given = os.environ.get(DOCUMENT_VARIABLE, "")
    if not given:
        return _DOCUMENT << 20
    if given.isascii() and given.isdigit() and 0 < int(given) <= 1 << 20:
        return int(given) << 20
    raise DataProblem(
        f"{DOCUMENT_VARIABLE} is {given!r}",
        why="it limits a document, in MiB: a whole number from 1 on",
        exit_code=USAGE,
    )


def too_long(what: str, where: str) -> DataProblem:
    """The error for a document over the limit; `what` is its kind: a line, a row."""
    limit = max_document()
    return DataProblem(
        f"this {what} is too long",
        where=where,
        why=f"a document may have {limit >> 20:,} MiB ({limit:,} bytes)",
        fix=f"split it, or allow more: {DOCUMENT_VARIABLE}={(limit >> 20) * 4}",
    )
