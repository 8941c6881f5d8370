"""The verb `jaxmodels data`: list, prepare, inspect, bench."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_pipelines.cores import cores
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
    side: int | None = None,
    force: bool = False,
    json: bool = False,
) -> int:
    """Turn text into a folder of tokens, or decode images with captions, for bin:FOLDER to open.

    A long text is encoded in parts. They stay, in .FOLDER.parts, when this is interrupted: the
    same command goes on with them. Of images with captions only --side and --force count: their
    captions are made into tokens when they are opened.

    Args:
        spec: what to read; see `jaxmodels data list`.
        folder: where to write.
        tokenizer: chars (those of the text), gpt2, or the PATH of a tokenizer.json or
            characters.json.
        workers: processes that encode, or threads of one file; 0 takes one for each core.
        min_freq: of chars: how often a character must occur to enter the vocabulary.
        dtype: size of a token on disk; auto takes the smaller that fits.
        side: width and height of images in pixels, a multiple of 14; by default as shapes are
            drawn, and 224 for others.
        force: replace the prepared folder that is there.
        json: print the manifest as one JSON object.
    """
    from data_pipelines.captions.opening import has_captions
    from data_pipelines.prepare import prepare
    from data_pipelines.tokenizers import CHARS, open_tokenizer

    if has_captions(spec):
        given = (tokenizer, min_freq, dtype) != (CHARS, 1, "auto")
        return _prepare_images(spec, folder, side, given, force, json)
    chosen = None if tokenizer == CHARS else open_tokenizer(tokenizer)
    wanted = None if dtype == "auto" else dtype
    threads = workers or cores()
    with ProgressBar() as progress:
        made = prepare(spec, folder, min_freq, chosen, wanted, progress, force, threads)
    if json:
        _emit({"folder": str(folder), **made})
    else:
        arch = "charlm:tiny" if tokenizer == CHARS else "wikigpt:tiny"
        print(
            f"{made['tokens']:,} tokens of {made['documents']:,} "
            f"{'document' if made['documents'] == 1 else 'documents'}, "
            f"{made['vocab_size']:,} in the vocabulary, "
            f"{made['unknown']:,} not in it, written to {folder}\n"
            f"next: jaxmodels train {arch} --data bin:{folder} --out runs/first"
        )
    return 0


def _prepare_images(
    spec: str, folder: Path, side: int | None, given: bool, force: bool, json: bool
) -> int:
    from data_pipelines.captions.prepare import prepare_images
    from data_pipelines.captions.prepared import notes_of
    from data_pipelines.errors import USAGE, DataProblem

    if given:
        raise DataProblem(
            "captions are made into tokens when they are opened, not before",
            where=spec,
            fix="leave out --tokenizer, --min-freq and --dtype here; train with --tokenizer",
            exit_code=USAGE,
        )
    with ProgressBar() as progress:
        made = prepare_images(spec, folder, side, progress, force)
    if json:
        _emit({"folder": str(folder), **made})
    else:
        train, valid = made["images"]["train"], made["images"]["valid"]
        for note in notes_of(made):
            print(note)
        print(
            f"{train:,} images, and {valid:,} held out, with {made['captions']:,} captions, "
            f"written to {folder}\n"
            f"next: jaxmodels train bitgen:tiny --data bin:{folder} --out runs/first"
        )
    return 0


def inspect_(
    what: Either, tokenizer: str = "chars", valid_fraction: float = 0.05, json: bool = False
) -> int:
    """Tokens, vocabulary, splits and an excerpt of a prepared folder or a text.

    Of images with captions also how large the images are.

    Exits with 3 if the files of a folder are not those that its manifest tells.

    Args:
        what: a folder that `data prepare` wrote, or a spec.
        tokenizer: what counts the tokens of a text: chars, gpt2, words (of captions) or a PATH.
        valid_fraction: share of the tokens, from the end, that is held out; of images, where the
            source holds none out itself.
        json: print one JSON object.
    """
    from data_pipelines import reports
    from data_pipelines.captions.opening import has_captions
    from data_pipelines.prepare import MANIFEST

    if (Path(what) / MANIFEST).is_file():
        what = f"bin:{what}"
    with ProgressBar() as progress:
        if has_captions(what):
            from data_pipelines.captions.reports import of_images

            return _show(of_images(what, tokenizer, valid_fraction, progress), json)
        if what.startswith("bin:"):
            report = reports.of_tokens(what, progress)
        else:
            report = reports.of_text(what, tokenizer, progress)
    held_out = int(report["tokens"] * valid_fraction)
    report |= {"train_tokens": report["tokens"] - held_out, "valid_tokens": held_out}
    return _show(report, json)


def bench_(
    what: Either,
    tokenizer: str = "gpt2",
    context: int = 256,
    batch: int = 64,
    json: bool = False,
) -> int:
    """Tokens a second: the loader beside numpy's plain sampling of the same file; tokenising.

    Of images with captions, images a second: the loader, and decoding.

    Args:
        what: a prepared folder, or a spec.
        tokenizer: what is timed on a text: gpt2 or a PATH; a folder of tokens has its own.
        context: inputs in a window; tokens of a caption.
        batch: windows, or images, in a batch.
        json: print one JSON object.
    """
    from data_pipelines import reports
    from data_pipelines.captions.opening import has_captions

    spec = f"bin:{what}" if Path(what).exists() else what
    if has_captions(spec):
        from data_pipelines.captions.reports import time_images

        found = time_images(spec, tokenizer, context, batch)
        if json:
            _emit({"context": context, "batch": batch, "images_per_second": found})
        else:
            print("\n".join(f"{name:<18} {rate:10,.0f} images/s" for name, rate in found.items()))
        return 0
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


def _show(report: dict[str, Any], json: bool) -> int:
    if json:
        _emit(report)
    else:
        width = max(13, *map(len, report))
        print("\n".join(f"{key:<{width}} {_plain(value)}" for key, value in report.items()))
    return 0


def _plain(value: Any) -> str:
    """A value of a report, for people."""
    if isinstance(value, dict):
        short = {k: len(v) if isinstance(v, dict) else v for k, v in value.items()}
        return ", ".join(f"{key} {_plain(part)}" for key, part in short.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, str):
        return value if value.isprintable() else repr(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _emit(result: Any) -> None:
    print(jsonlib.dumps(result), flush=True)
