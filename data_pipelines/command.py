"""The verb `jaxmodels data`: list, prepare, inspect, bench."""

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_pipelines.progress import ProgressBar

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
        width = max(map(len, SPECS))
        print("\n".join(f"{spec:<{width}} {what}" for spec, what in SPECS.items()))
    return 0


def prepare_(
    spec: Spec,
    folder: Folder,
    tokenizer: str = "chars",
    workers: int = 0,
    min_freq: int = 1,
    dtype: Literal["auto", "uint16", "uint32"] = "auto",
    force: bool = False,
    json: bool = False,
) -> int:
    """Turn text into a folder of tokens that bin:FOLDER opens.

    A long text is encoded in parts. They stay, in .FOLDER.parts, when this is interrupted: the
    same command goes on with them.

    Args:
        spec: what to read; see `jaxmodels data list`.
        folder: where to write.
        tokenizer: chars (those of the text), gpt2, or the PATH of a tokenizer.json or
            characters.json.
        workers: processes that encode; 0 takes one for each core.
        min_freq: of chars: how often a character must occur to enter the vocabulary.
        dtype: size of a token on disk; auto takes the smaller that fits.
        force: replace the prepared folder that is there.
        json: print the manifest as one JSON object.
    """
    from data_pipelines.prepare import prepare
    from data_pipelines.tokenizers import CHARS, open_tokenizer

    chosen = None if tokenizer == CHARS else open_tokenizer(tokenizer)
    wanted = None if dtype == "auto" else dtype
    cores = workers or os.cpu_count() or 1
    with ProgressBar() as progress:
        made = prepare(spec, folder, min_freq, chosen, wanted, progress, force, cores)
    if json:
        _emit({"folder": str(folder), **made})
    else:
        arch = "charlm:tiny" if tokenizer == CHARS else "wikigpt:tiny"
        print(
            f"{made['tokens']:,} tokens of {made['documents']:,} documents, "
            f"{made['vocab_size']:,} in the vocabulary, "
            f"{made['unknown']:,} not in it, written to {folder}\n"
            f"next: jaxmodels train {arch} --data bin:{folder} --out runs/first"
        )
    return 0


def inspect_(
    what: Either, tokenizer: str = "chars", valid_fraction: float = 0.05, json: bool = False
) -> int:
    """Tokens, vocabulary, splits and an excerpt of a prepared folder or a text.

    Exits with 3 if the files of a folder are not those that its manifest tells.

    Args:
        what: a folder that `data prepare` wrote, or a spec.
        tokenizer: what counts the tokens of a text: chars, gpt2 or a PATH.
        valid_fraction: share of the tokens, from the end, that is held out.
        json: print one JSON object.
    """
    from data_pipelines import reports
    from data_pipelines.prepare import MANIFEST

    with ProgressBar() as progress:
        if (Path(what) / MANIFEST).is_file():
            report = reports.of_tokens(f"bin:{what}", progress)
        elif what.startswith("bin:"):
            report = reports.of_tokens(what, progress)
        else:
            report = reports.of_text(what, tokenizer, progress)
    held_out = int(report["tokens"] * valid_fraction)
    report |= {"train_tokens": report["tokens"] - held_out, "valid_tokens": held_out}
    if json:
        _emit(report)
    else:
        print("\n".join(f"{key:<13} {_plain(value)}" for key, value in report.items()))
    return 0


def bench_(
    what: Either,
    tokenizer: str = "gpt2",
    context: int = 256,
    batch: int = 64,
    json: bool = False,
) -> int:
    """Tokens a second: the loader beside numpy's plain sampling of the same file; tokenising.

    Args:
        what: a prepared folder, or a spec.
        tokenizer: what is timed on a text: gpt2 or a PATH; a folder has its own.
        context: inputs in a window.
        batch: windows in a batch.
        json: print one JSON object.
    """
    from data_pipelines import reports

    spec = f"bin:{what}" if Path(what).exists() else what
    if spec.startswith("bin:"):
        rates = reports.time_folder(spec, context, batch)
    else:
        rates = reports.time_text(spec, tokenizer, context, batch)
    result = {"context": context, "batch": batch, "tokens_per_second": rates}
    if json:
        _emit(result)
    else:
        print("\n".join(f"{name:<18} {rate / 1e6:8.2f} Mtok/s" for name, rate in rates.items()))
    return 0


def _plain(value: Any) -> str:
    """A value of a report, for people."""
    if isinstance(value, dict):
        short = {k: len(v) if isinstance(v, dict) else v for k, v in value.items()}
        return ", ".join(f"{key} {_plain(part)}" for key, part in short.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else repr(value)


def _emit(result: Any) -> None:
    print(jsonlib.dumps(result), flush=True)
