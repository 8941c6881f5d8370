"""The verb `jaxmodels data`: list, prepare, inspect, bench."""

import json as jsonlib
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_pipelines.progress import ProgressBar

_EXCERPT = 200  # characters
_ROUNDS, _BATCHES = 7, 200  # of the benchmark

Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Spec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
Either = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|SPEC")]


def main(argv: list[str]) -> int:
    """Runs one of the commands below and returns the exit code."""
    return tyro.extras.subcommand_cli_from_dict(
        {"list": list_, "prepare": prepare_, "inspect": inspect_, "bench": bench_},
        args=argv,
        prog="jaxmodels data",
        description="List, prepare and inspect training data.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def list_(json: bool = False) -> int:
    """The forms of SPEC, with a line about each.

    Args:
        json: print one JSON list.
    """
    from data_pipelines.sources import SPECS

    if json:
        _emit([{"spec": spec, "what": what} for spec, what in SPECS.items()])
    else:
        print("\n".join(f"{spec:<11} {what}" for spec, what in SPECS.items()))
    return 0


def prepare_(
    spec: Spec,
    folder: Folder,
    min_freq: int = 1,
    dtype: Literal["uint16", "uint32"] = "uint16",
    vocab: Path | None = None,
    force: bool = False,
    json: bool = False,
) -> int:
    """Turn text into a folder of tokens that bin:FOLDER opens.

    Args:
        spec: pydoc or text:PATH.
        folder: where to write.
        min_freq: a character must occur this often to enter the vocabulary.
        dtype: size of a token on disk.
        vocab: use this characters.json instead of the text's own vocabulary.
        force: replace the prepared folder that is there.
        json: print the manifest as one JSON object.
    """
    from data_pipelines.prepare import prepare
    from data_pipelines.tokenizers import CharTokenizer

    tokenizer = CharTokenizer.load(vocab) if vocab else None
    with ProgressBar() as progress:
        made = prepare(spec, folder, min_freq, tokenizer, dtype, progress, force)
    if json:
        _emit({"folder": str(folder), **made})
    else:
        print(
            f"{made['tokens']:,} tokens, {made['vocab_size']} in the vocabulary, "
            f"{made['unknown']:,} <UNK>, written to {folder}\n"
            f"next: jaxmodels train charlm:tiny --data bin:{folder} --out runs/first"
        )
    return 0


def inspect_(what: Either, valid_fraction: float = 0.05, json: bool = False) -> int:
    """Tokens, vocabulary, splits and an excerpt of a prepared folder or a text.

    Exits with 3 if the files of a folder are not those that its manifest tells.

    Args:
        what: a folder that `data prepare` wrote, or a spec.
        valid_fraction: share of the tokens, from the end, that is held out.
        json: print one JSON object.
    """
    from data_pipelines.prepare import MANIFEST

    with ProgressBar() as progress:
        if (Path(what) / MANIFEST).is_file():
            report = _inspect_bin(f"bin:{what}", progress)
        elif what.startswith("bin:"):
            report = _inspect_bin(what, progress)
        else:
            report = _inspect_text(what, progress)
    held_out = int(report["tokens"] * valid_fraction)
    report |= {"train_tokens": report["tokens"] - held_out, "valid_tokens": held_out}
    if json:
        _emit(report)
    else:
        print("\n".join(f"{key:<13} {_plain(value)}" for key, value in report.items()))
    return 0


def bench_(folder: Either, context: int = 256, batch: int = 64, json: bool = False) -> int:
    """Tokens a second from the loader, beside numpy's plain sampling of the same file.

    Args:
        folder: a prepared folder, or bin:PATH.
        context: inputs in a window.
        batch: windows in a batch.
        json: print one JSON object.
    """
    from data_pipelines.loader import Windows
    from data_pipelines.pipelines import open_data

    spec = folder if folder.startswith("bin:") else f"bin:{folder}"
    data = open_data(spec, folder="", context=context, batch=batch, valid_fraction=0.0)
    windows = Windows(data.tokens, context, batch)
    position = iter(range(1 << 62))
    with closing(data.train()) as batches:
        makers = {
            "loader": lambda: next(batches),
            "loader_unthreaded": lambda: windows[next(position)],
            "numpy": _plain_sampling(data.tokens, context, batch),
        }
        rates = _rates(makers, batch * (context + 1))
    result = {"context": context, "batch": batch, "tokens_per_second": rates}
    if json:
        _emit(result)
    else:
        print("\n".join(f"{name:<18} {rate / 1e6:8.1f} Mtok/s" for name, rate in rates.items()))
    return 0


def _inspect_bin(spec: str, progress: ProgressBar) -> dict[str, Any]:
    from data_pipelines.prepare import read_manifest
    from data_pipelines.streams import open_bin

    stream = open_bin(spec, progress=progress)
    folder = Path(spec.removeprefix("bin:")).expanduser()
    report: dict[str, Any] = {"spec": spec, "dtype": stream.tokens.dtype.name}
    excerpt = stream.tokens[:20].tolist()
    if stream.tokenizer:
        manifest = read_manifest(folder)
        report |= {key: manifest[key] for key in ("min_freq", "unknown", "source")}
        report["source"] = {"spec": manifest["spec"]} | report["source"]
        excerpt = stream.tokenizer.decode(stream.tokens[:_EXCERPT])
    return report | {
        "tokens": len(stream.tokens),
        "vocab_size": stream.tokenizer and stream.vocab_needed,
        "vocab_needed": stream.vocab_needed,
        "excerpt": excerpt,
    }


def _inspect_text(spec: str, progress: ProgressBar) -> dict[str, Any]:
    from data_pipelines.sources import Reading, open_text
    from data_pipelines.tokenizers import CharTokenizer

    source = open_text(spec)
    reading = Reading(source, "counting characters", progress)
    tokenizer = CharTokenizer.build(reading)
    return {
        "spec": spec,
        "source": reading.fingerprint(),
        "tokens": reading.characters,
        "vocab_size": tokenizer.vocab_size,
        "excerpt": next(source.chunks(), "")[:_EXCERPT],
    }


def _plain_sampling(tokens: Any, context: int, batch: int) -> Callable[[], Any]:
    """Random windows, sliced one by one from the memory map and stacked."""
    import numpy as np

    rng = np.random.default_rng(0)

    def sample() -> Any:
        starts = rng.integers(0, len(tokens) - context, batch)
        return np.stack([tokens[i : i + context + 1].astype(np.int32) for i in starts])

    return sample


def _rates(makers: dict[str, Callable[[], Any]], tokens: int) -> dict[str, float]:
    """Median tokens a second over alternating rounds, so that all meet the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(_ROUNDS):
        for name, make in makers.items():
            make()
            start = time.perf_counter()
            for _ in range(_BATCHES):
                make()
            seconds[name].append(time.perf_counter() - start)
    return {name: tokens * _BATCHES / statistics.median(took) for name, took in seconds.items()}


def _plain(value: Any) -> str:
    """A value of a report, for people."""
    if isinstance(value, dict):
        short = value | {"documents": len(value.get("documents", ()))}
        return ", ".join(f"{key} {_plain(part)}" for key, part in short.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else repr(value)


def _emit(result: Any) -> None:
    print(jsonlib.dumps(result), flush=True)
