"""Reports of `jaxmodels data inspect`, and timings of `jaxmodels data bench`."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.characters import CharTokenizer
from data_pipelines.cores import cores
from data_pipelines.encoding import encode
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.loader import Windows, batches
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import read_manifest
from data_pipelines.reading import Progress, Reading, Source
from data_pipelines.sources import fingerprint, open_text
from data_pipelines.streamed_dataset import StreamedDataset, open_streamed
from data_pipelines.token_files import open_bin
from data_pipelines.tokenizers import CHARS, Tokenizer, open_tokenizer

_EXCERPT = 200  # characters
_ROUNDS, _BATCHES = 7, 200  # of a timing
_TEXT = 1 << 20  # characters tokenised in a round


def of_tokens(spec: str, progress: Progress | None = None) -> dict[str, Any]:
    """A JSON-able report on a prepared folder or a raw token file (`bin:PATH`)."""
    folder = path_of(spec.removeprefix("bin:"))
    stream = open_bin(spec, progress=progress, full_scan=folder.is_dir())
    report: dict[str, Any] = {"spec": spec, "dtype": stream.tokens.dtype.name}
    excerpt = stream.tokens[:20].tolist()
    if stream.tokenizer:
        manifest = read_manifest(folder)
        names = ("min_freq", "unknown", "documents", "tokenizer", "source")
        report |= {key: manifest[key] for key in names}
        report["source"] = {"spec": manifest["spec"]} | report["source"]
        excerpt = stream.tokenizer.decode(stream.tokens[:_EXCERPT])[:_EXCERPT]
    return report | {
        "tokens": len(stream.tokens),
        "vocab_size": stream.tokenizer and stream.vocab_needed,
        "vocab_needed": stream.vocab_needed,
        "excerpt": excerpt,
    }


def of_text(spec: str, name: str, progress: Progress | None = None) -> dict[str, Any]:
    """A JSON-able report on a text; tokens are counted, those of a TFDS dataset estimated.

    Args:
        spec: any but `bin:`.
        name: of the tokeniser.
        progress: called as (stage, bytes done, bytes in all).
    """
    source = open_text(spec)
    tokenizer = None if name == CHARS else open_tokenizer(name)
    excerpt = "".join(islice(source.chunks(_EXCERPT), 4))[:_EXCERPT]
    report = {"spec": spec, "source": fingerprint(source, progress), "excerpt": excerpt}
    if "dataset" in source.records:
        sizes: dict[str, Any] = {"context": 1, "batch": 1, "seed": 0, "valid_fraction": 0.0}
        data = open_streamed(source, tokenizer, progress=progress, **sizes)
        estimated = {"tokens": data.train_tokens, "tokens_are_estimated": True}
        documents = source.records["examples"]
        return report | {"documents": documents, "vocab_size": data.vocab_size} | estimated
    tokenizer = tokenizer or CharTokenizer.build(Reading(source, "counting characters", progress))

    def tick(done: int) -> None:
        if progress:
            progress("counting tokens", done, source.bytes)

    found = encode(source.parts, tokenizer, "<u4", Path(os.devnull), tick, cores())
    return report | {
        "documents": found.documents,
        "unknown": found.unknown,
        "vocab_size": tokenizer.vocab_size,
        "tokens": found.tokens,
    }


def time_folder(spec: str, context: int, batch: int) -> dict[str, float]:
    """Tokens per second of `bin:PATH`: our loader, plain numpy sampling, encoding its text."""
    stream = open_bin(spec)
    windows = Windows(stream.tokens, context, batch)
    position = iter(range(1 << 62))
    with closing(batches(stream.tokens, context=context, batch=batch)) as loader:
        makers = {
            "loader": lambda: next(loader),
            "loader_unthreaded": lambda: windows[next(position)],
            "numpy": plain_sampling(stream.tokens, context, batch),
        }
        found = rates(makers, batch * (context + 1), _BATCHES)
    if stream.tokenizer:
        text = stream.tokenizer.decode(stream.tokens[:_TEXT])
        found |= _encoding(stream.tokenizer, text)
    return found


def time_text(spec: str, name: str, context: int, batch: int) -> dict[str, float]:
    """Tokens per second of a text: encoding it; for a TFDS dataset also its batches."""
    source, tokenizer = open_text(spec), open_tokenizer(name)
    found = _encoding(tokenizer, _beginning(source))
    sizes: dict[str, Any] = {"context": context, "batch": batch, "valid_fraction": 0.0}
    if "dataset" in source.records:
        data = open_data(spec, folder="", tokenizer=tokenizer, **sizes)
        assert isinstance(data, StreamedDataset)
        with closing(data.train()) as loader:
            makers = {"streamed": lambda: next(loader)}
            found |= rates(makers, batch * (context + 1), max(1, _BATCHES // 20))
    return found


def _beginning(source: Source) -> str:
    parts: list[str] = []
    for text in source.chunks():
        parts.append(text)
        if sum(map(len, parts)) >= _TEXT:
            break
    if not parts:
        raise DataProblem("the text is empty", where=source.spec, exit_code=USAGE)
    return "".join(parts)[:_TEXT]


def _encoding(tokenizer: Tokenizer, text: str) -> dict[str, float]:
    return rates({"encoding": lambda: tokenizer.encode(text)}, len(tokenizer.encode(text)), 1)


def plain_sampling(tokens: np.ndarray, context: int, batch: int) -> Callable[[], Any]:
    """Random windows, sliced one by one from the memory map and stacked."""
    rng = np.random.default_rng(0)

    def sample() -> Any:
        starts = rng.integers(0, len(tokens) - context, batch)
        return np.stack([tokens[i : i + context + 1].astype(np.int32) for i in starts])

    return sample


def rates(makers: dict[str, Callable[[], Any]], tokens: int, times: int) -> dict[str, float]:
    """Median tokens per second over alternating rounds, so that all meet the same load.

    Args:
        makers: the functions to time, by name.
        tokens: made by a call; or images, or another unit.
        times: calls in a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(_ROUNDS):
        for name, make in makers.items():
            make()
            start = time.perf_counter()
            for _ in range(times):
                make()
            seconds[name].append(time.perf_counter() - start)
    return {name: tokens * times / statistics.median(took) for name, took in seconds.items()}
