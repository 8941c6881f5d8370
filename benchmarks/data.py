"""Batches and tokenising, against numpy and tiktoken: `jaxmodels bench data`.

Four races. Batches from a file of tokens: training's loader, the same without its threads, plain
numpy sampling, and nanoGPT's sampling (inputs and targets as int64). GPT-2's BPE on one core: our
tokeniser against tiktoken. On all cores: `data prepare`, which also reads, checks and writes,
against tiktoken in as many threads. And batches of drawn images with captions. All contestants of
a race must make the same number of tokens.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, Call, Contestant, Run, Timing, positive, race, save, table
from data_pipelines.captions.caption_dataset import CaptionDataset, ShuffledCaptions
from data_pipelines.cores import cores
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.gpt2.vocabulary import ranks
from data_pipelines.loader import Windows, batches
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import prepare
from data_pipelines.reports import plain_sampling
from data_pipelines.sources import open_text
from data_pipelines.token_files import open_bin
from jaxmodels.cli import parse, say
from jaxmodels.errors import UNVERIFIED, Problem, within

OURS = "jaxmodels"
RUNS = ((),)
QUICK = (
    ("--context", "32", "--batch", "16", "--times", "5", "--megabytes", "1", "--images", "64",
     "--rounds", "2"),
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Time batches and tokenising."""

    context: int = 256
    """Inputs in a window."""
    batch: int = 64
    """Windows, or images, in a batch."""
    times: int = 200
    """Batches in a round."""
    megabytes: int = 64
    """Text that all cores tokenise; one core takes at most 4 MB of it. The embedded text is
    repeated to this length."""
    images: int = 6400
    """Images in a round; 0 skips them."""
    rounds: int = 7
    """Timed rounds, after one that is not."""
    out: Path = RESULTS
    """Folder whose data.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "context", "batch", "times", "megabytes", "rounds")
        within("--images", self.images, 0)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as tables."""
    options = parse(Data, argv, "bench data")
    settings = {
        "batch": options.batch,
        "context": options.context,
        "times": options.times,
        "megabytes": options.megabytes,
        "threads": cores(),
        "warmup": 1,
    }
    run = Run("data", settings)
    records = []
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        text = _text(Path(folder) / "text.txt", options.megabytes)
        for case, unit, contestants in _cases(options, Path(folder), text):
            say(case)
            timings = race(contestants, options.rounds, warmup=1)
            counts = {timing.name: timing.value for timing in timings}
            if len(set(counts.values())) > 1:
                raise Problem(
                    f"contestants made different numbers of {unit}",
                    where=f"{case}: {counts}",
                    exit_code=UNVERIFIED,
                )

            def extra(timing: Timing, unit: str = unit) -> dict[str, Any]:
                return {f"{unit}_per_second": timing.value / float(np.median(timing.seconds))}

            made = run.records(case, timings, extra)
            say(f"added to {save(made, options.out)}")
            print(
                f"\n### {case}, {cores()} cores\n{table(made, {f'{unit}_per_second': f'{unit}/s'})}"
            )
            records += made
    return records


def _text(path: Path, megabytes: int) -> str:
    """Prose of so many million bytes, also written to a file."""
    embedded = "".join(open_text("pydoc").chunks())
    size = megabytes * 1_000_000
    text = (embedded * (1 + size // len(embedded)))[:size]
    path.write_text(text, encoding="utf-8")
    return text


def _cases(options: Data, folder: Path, text: str) -> list[tuple[str, str, list[Contestant]]]:
    """Name, unit and contestants of each race."""
    tokens = GPT2Tokenizer().encode(text[:4_000_000]).astype("<u2")
    tokens.tofile(folder / "tokens.bin")
    workers = cores()
    return [
        (f"batches, {options.batch} × {options.context}", "tokens", _batches(options, folder)),
        (
            "GPT-2 BPE, one core",
            "tokens",
            [
                Contestant(OURS, partial(our_encoding, text[:4_000_000])),
                Contestant("tiktoken", partial(tiktoken_encoding, [text[:4_000_000]], 1)),
            ],
        ),
        (
            f"GPT-2 BPE, {workers} cores, {options.megabytes} MB",
            "tokens",
            [
                Contestant(f"{OURS} prepare", partial(preparing, folder, workers)),
                Contestant("tiktoken", partial(tiktoken_encoding, _pieces(text), workers)),
            ],
        ),
        *_images(options, folder),
    ]


def _pieces(text: str) -> list[str]:
    """The text in pieces of a million characters, cut where no token spans the border."""
    cut, size = [], 1_000_000
    while text:
        at = len(text) if len(text) <= size else GPT2Tokenizer().safe_cut(text[:size])
        cut.append(text[:at])
        text = text[at:]
    return cut


def _batches(options: Data, folder: Path) -> list[Contestant]:
    stream = open_bin(f"bin:{folder / 'tokens.bin'}")
    size = (options.context, options.batch)
    windows, position = Windows(stream.tokens, *size), iter(range(1 << 62))
    makers: dict[str, Callable[[], Any]] = {
        f"{OURS}, one thread": lambda: windows[next(position)]["tokens"],
        "numpy": plain_sampling(stream.tokens, *size),
        "numpy, as nanoGPT": nanogpt_sampling(stream.tokens, *size),
    }
    return [
        Contestant(OURS, partial(loading, folder, options)),
        *(
            Contestant(
                name, partial(repeated, make, options.times, options.batch * options.context)
            )
            for name, make in makers.items()
        ),
    ]


def nanogpt_sampling(tokens: np.ndarray, context: int, batch: int) -> Callable[[], Any]:
    """Inputs and targets, int64 [batch, context], sliced one by one from the map and stacked."""
    rng = np.random.default_rng(0)

    def sample() -> Any:
        starts = rng.integers(0, len(tokens) - context, batch)
        inputs = [tokens[start : start + context].astype(np.int64) for start in starts]
        targets = [tokens[start + 1 : start + 1 + context].astype(np.int64) for start in starts]
        return np.stack(inputs), np.stack(targets)

    return sample


def repeated(make: Callable[[], Any], times: int, size: int) -> Call:
    """Calls `make` so many times; returns the number of units made, `size` each time."""

    def call(index: int) -> int:
        for _ in range(times):
            make()
        return times * size

    return call


def loading(folder: Path, options: Data) -> Call:
    """Training's loader, with its threads."""
    stream = open_bin(f"bin:{folder / 'tokens.bin'}")
    loader = batches(stream.tokens, context=options.context, batch=options.batch)
    return repeated(lambda: next(loader), options.times, options.batch * options.context)


def our_encoding(text: str) -> Call:
    """Our tokeniser; returns the number of tokens."""
    tokenizer = GPT2Tokenizer()
    return lambda index: len(tokenizer.encode(text))


def tiktoken_encoding(pieces: list[str], threads: int) -> Call:
    """tiktoken with its own pattern; returns the number of tokens."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks(), special_tokens={}
    )
    if threads == 1:
        return lambda index: sum(len(encoding.encode_ordinary(piece)) for piece in pieces)
    return lambda index: sum(map(len, encoding.encode_ordinary_batch(pieces, num_threads=threads)))


def preparing(folder: Path, workers: int) -> Call:
    """`data prepare` of the text's file; returns the number of tokens."""

    def call(index: int) -> int:
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            made = prepare(
                f"text:{folder / 'text.txt'}",
                os.path.join(inside, "tokens"),
                tokenizer=GPT2Tokenizer(),
                workers=workers,
            )
        return int(made["tokens"])

    return call


def _images(options: Data, folder: Path) -> list[tuple[str, str, list[Contestant]]]:
    """The race of drawn scenes with captions: by the loader, and without its threads."""
    if not options.images:
        return []
    data = open_data(
        "shapes", folder=folder / "shapes", context=32, batch=options.batch, valid_fraction=0.05
    )
    assert isinstance(data, CaptionDataset)
    shuffled, position = (
        ShuffledCaptions(data, np.arange(len(data.texts)), None),
        iter(range(1 << 62)),
    )
    times, loader = max(1, options.images // options.batch), data.train()
    makers: dict[str, Callable[[], Any]] = {
        OURS: lambda: next(loader),
        f"{OURS}, one thread": lambda: shuffled[next(position)],
    }
    size = (times, options.batch)
    contestants = [
        Contestant(name, partial(repeated, make, *size)) for name, make in makers.items()
    ]
    return [(f"drawn images, {options.batch} at once", "images", contestants)]
