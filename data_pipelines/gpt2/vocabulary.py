"""GPT-2's vocabulary as ranks, read from gpt2.tiktoken."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from data_pipelines.errors import DataProblem

RANKS = Path(__file__).with_name("gpt2.tiktoken")
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"
VOCAB = 50_257


@cache
def ranks() -> dict[bytes, int]:
    """Bytes of a token → id, for all ids but end of text.

    Raises:
        DataProblem: (corrupt) the file of the package is missing or has changed.
    """
    try:
        data = RANKS.read_bytes()
    except OSError as error:
        raise _damaged(str(error)) from None
    if (found := hashlib.sha256(data).hexdigest()) != RANKS_SHA256:
        raise _damaged(f"its sha256 is {found}, not {RANKS_SHA256}")
    rows = (line.split() for line in data.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def _damaged(why: str) -> DataProblem:
    return DataProblem(
        "GPT-2's vocabulary, which comes with this program, is damaged",
        where=str(RANKS),
        why=why,
        fix="reinstall the program",
    )
