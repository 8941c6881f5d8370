"""`jaxmodels data tokenizer`: makes a vocabulary, writes and measures it."""

from collections import deque
from pathlib import Path
from typing import Any

from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import EXISTS, USAGE, DataProblem
from data_pipelines.mixture_spec import parse_mixture
from data_pipelines.reading import Progress
from data_pipelines.sources import MIX
from data_pipelines.split_text import SplitText
from data_pipelines.vocabularies import BYTES, CHARACTERS, END, Wanted, learn, measure


def make(
    spec: str,
    out: Path,
    kind: str,
    size: int,
    special: tuple[str, ...] = (),
    held_out: float = 0.05,
    most: int = 10**9,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes a vocabulary from a text and writes its file.

    Args:
        spec: the text; a mixture's sources are read one after the other.
        out: the file.
        kind: of `vocabularies.KINDS`.
        size: tokens in all; ignored for bytes.
        special: special tokens besides the end of text.
        held_out: share of each text that is measured on.
        most: bytes of each text to read, at most.
        force: replace an existing file.
        progress: called as (stage, bytes done, bytes in all).

    Returns:
        the report, JSON-able.

    Raises:
        DataProblem: (exists) there is such a file; (usage, corrupt) as `vocabularies.learn`.
    """
    if out.exists() and (out.is_dir() or not force):
        raise DataProblem(
            "the output exists",
            where=str(out),
            fix="give the path of a file that does not" if out.is_dir() else "add --force",
            exit_code=EXISTS,
        )
    if not 0 <= held_out < 1 or most < 1:
        raise DataProblem("--held-out is from 0 to 1, --max-bytes positive", exit_code=USAGE)
    if kind == CHARACTERS and special:
        raise DataProblem(
            "characters have no special tokens but <PAD> and <UNK>",
            fix="leave out --special, or use another --kind",
            exit_code=USAGE,
        )
    specials = (END, *(token for token in special if token != END))
    if kind == CHARACTERS:
        specials = CharTokenizer.specials
    if kind == BYTES:
        size = 256 + len(specials)
    specs = parse_mixture(spec)[0] if spec.startswith(f"{MIX}:") else (spec,)
    text = SplitText(specs, held_out, most, progress)
    first = text.learned()
    tokenizer = learn(first, Wanted(kind, size), specials)
    deque(first, maxlen=0)  # bytes learn nothing from it
    found = measure(tokenizer, text.measured())
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    return {
        "file": str(out),
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": list(specials),
        "digest": tokenizer.digest,
        "learned_bytes": text.bytes,
        "held_out_bytes": found.bytes,
        "bytes_per_token": found.bytes / found.tokens if found.tokens else None,
        "gpt2_bytes_per_token": found.bytes / found.gpt2_tokens if found.tokens else None,
        "unknown": found.unknown,
    }
