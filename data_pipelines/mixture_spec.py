"""The spec of a mixture: its sources, their shares and their common tokeniser."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from data_pipelines.captions.opening import has_captions, has_questions
from data_pipelines.characters import CharTokenizer
from data_pipelines.documents import first_documents
from data_pipelines.errors import MISMATCH, USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.prepare import read_manifest, read_tokenizer
from data_pipelines.reading import Progress, Reading
from data_pipelines.sources import MIX, SPECS, open_text
from data_pipelines.tokenizers import BARE_CHARS, CHARS, Tokenizer, open_tokenizer
from data_pipelines.vocabularies import learn_from, wanted

_KINDS = "|".join(sorted({re.split(r"[:\[]", form)[0] for form in SPECS}))
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
# A comma may be part of a path: one separates sources only where a weight follows it.
_SEPARATOR = re.compile(rf",\s*(?={_NUMBER}\s*\*)", re.IGNORECASE)
_UNWEIGHTED = re.compile(rf",\s*(?:{_KINDS})(?=[:,]|$)")


def parse_mixture(spec: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The sources of `mix:WEIGHT*SPEC,WEIGHT*SPEC`, and the share of rows of each.

    Raises:
        DataProblem: (usage) a weight is missing or not a positive number.
    """
    sources, weights = [], []
    for part in _SEPARATOR.split(spec.removeprefix(f"{MIX}:")):
        number, star, source = part.strip().partition("*")
        if not star or not source or not re.fullmatch(_NUMBER, number.strip(), re.IGNORECASE):
            raise _wrong(spec, f"{part[:200]!r} is not WEIGHT*SPEC")
        if (weight := float(number)) <= 0 or not math.isfinite(weight):
            raise _wrong(spec, f"a weight is a positive number, not {number.strip()}")
        if unweighted := _UNWEIGHTED.search(source):
            after = source[unweighted.start() + 1 :].strip()
            raise _wrong(spec, f"there is no weight before {after[:200]}")
        if source.startswith(f"{MIX}:"):
            raise _wrong(spec, "a mixture cannot be part of another")
        sources.append(source)
        weights.append(weight)
    total = sum(weights)
    shares = tuple(weight / total for weight in weights) if math.isfinite(total) else ()
    if not all(shares) or not shares:
        raise _wrong(spec, "the weights are too far apart")
    return tuple(sources), shares


def image_source(spec: str, specs: tuple[str, ...], mixes_images: bool) -> int | None:
    """The index of the source of a mixture that is images with captions; None: all are text.

    Args:
        spec: the mixture.
        specs: its sources.
        mixes_images: whether the model reads text and images.

    Raises:
        DataProblem: (usage) images where the model reads one kind only, or several sources of
            images, or no text.
    """
    found = [i for i, source in enumerate(specs) if has_captions(source)]
    if found and not mixes_images:
        raise _wrong(
            spec,
            f"images with captions cannot be mixed: {specs[found[0]]} (only wigip with images "
            "learns from text and images at once)",
        )
    if len(found) > 1 or len(found) == len(specs):
        raise _wrong(spec, "images with captions are one source of a mixture, the others are text")
    return found[0] if found else None


def kinds_of(spec: str) -> set[str]:
    """What the data of a spec is: "text", "images" (with captions), or both.

    Raises:
        DataProblem: as `parse_mixture` and `has_captions`.
    """
    specs = parse_mixture(spec)[0] if spec.startswith(f"{MIX}:") else (spec,)
    return {"images" if has_captions(source) else "text" for source in specs}


def asks(spec: str) -> bool:
    """Whether the data of a spec, or a source of a mixture, is questions about images."""
    specs = parse_mixture(spec)[0] if spec.startswith(f"{MIX}:") else (spec,)
    return any(has_captions(source) and has_questions(source) for source in specs)


def _wrong(spec: str, why: str) -> DataProblem:
    return DataProblem(
        "this is not a mixture",
        where=spec,
        why=why,
        fix="give each source its weight: mix:3*text:books,1*jsonl:web.jsonl#body",
        exit_code=USAGE,
    )


def shared_tokenizer(
    specs: tuple[str, ...],
    name: str,
    vocab_documents: int,
    min_freq: int,
    progress: Progress | None,
    valid_fraction: float = 0.0,
) -> Tokenizer | None:
    """The tokeniser of all sources; None where all are raw token files."""
    if want := wanted(name):
        return learn_from(specs, want, valid_fraction, min_freq, progress)
    if name not in (CHARS, BARE_CHARS):
        return open_tokenizer(name)
    files = [spec for spec in specs if spec.startswith("bin:")]
    folders = {spec: path for spec in files if (path := path_of(spec[len("bin:") :])).is_dir()}
    if len(files) == len(specs) and not folders:
        return None
    tokenizers = {spec: read_tokenizer(path, read_manifest(path)) for spec, path in folders.items()}
    if raw := [spec for spec in files if spec not in folders]:
        raise DataProblem(
            "the vocabulary of a raw token file is unknown",
            where=raw[0],
            why="other sources of the mixture are text or have a tokeniser",
            fix="give the tokeniser that it was made with: --tokenizer gpt2, or a PATH",
            exit_code=USAGE,
        )
    if tokenizers:
        first, *others = tokenizers
        for other in others:
            if tokenizers[other].digest != tokenizers[first].digest:
                raise DataProblem(
                    "the sources of a mixture have different vocabularies",
                    where=other,
                    why=f"it has {tokenizers[other].vocab_size:,} tokens, and {first} has "
                    f"{tokenizers[first].vocab_size:,}, or different ones",
                    fix="prepare all of them with one tokeniser: --tokenizer PATH",
                    exit_code=MISMATCH,
                )
        return tokenizers[first]

    def texts() -> Iterator[str]:
        for spec in specs:
            source = open_text(spec)
            if "dataset" in source.records:
                count = min(vocab_documents, source.records["examples"])
                yield from first_documents(source, count, progress)
            else:
                yield from Reading(source, f"counting characters of {spec}", progress)

    found = CharTokenizer.build(texts(), min_freq)
    if not found.chars:
        raise DataProblem("the texts give no vocabulary", where=", ".join(specs))
    return replace(found, specials=()) if name == BARE_CHARS else found
