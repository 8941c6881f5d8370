"""The verb `jaxmodels data`: list, prepare, tokenizer, inspect, bench."""

import json as jsonlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_pipelines.cores import cores
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.progress import ProgressBar

Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Spec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
Either = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|SPEC")]

# How to give several values of an option that is given twice.
_TOGETHER = {
    "--data": "mix the texts, each with its weight: --data mix:3*A,1*B",
    "--special": "give all special tokens at once: --special A B",
}


def main(argv: list[str]) -> int:
    """Runs one of the commands below and returns its exit code.

    Raises:
        DataProblem: (usage) an option is given twice: the parser would silently take the last.
    """
    _refuse_repeated(argv)
    return tyro.extras.subcommand_cli_from_dict(
        {
            "list": list_,
            "prepare": prepare_,
            "tokenizer": tokenizer_,
            "inspect": inspect_,
            "bench": bench_,
        },
        args=argv,
        prog="jaxmodels data",
        description="List, prepare and inspect training data.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _refuse_repeated(argv: list[str]) -> None:
    times = Counter(word.partition("=")[0] for word in argv if word.startswith("--"))
    for flag in (flag for flag, count in times.items() if count > 1):
        fix = _TOGETHER.get(flag, "give it once")
        raise DataProblem(f"{flag} is given {times[flag]} times", fix=fix, exit_code=USAGE)


def list_(json: bool = False) -> int:
    """List the forms of SPEC.

    Args:
        json: print a JSON list.
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
    """Turn text into a folder of tokens, or decode images with captions; bin:FOLDER opens it.

    A long text is encoded in parts, kept in .FOLDER.parts: after an interruption the same command
    continues from them. For images with captions only --side and --force apply: captions are
    tokenised when the folder is opened.

    Args:
        spec: what to read; see `jaxmodels data list`.
        folder: where to write.
        tokenizer: chars (of the text), bpe:4096, unigram:4096 or bytes (made from it, see
            `jaxmodels data tokenizer`), gpt2, or the PATH of a tokenizer.json, characters.json or
            sentencepiece model.
        workers: processes that encode, or threads for a single file; 0 means one for each core.
        min_freq: for chars: how often a character must occur to enter the vocabulary.
        dtype: type of a token on disk; auto takes the smaller one that fits.
        side: width and height of images in pixels, a multiple of 14; by default the width that
            shapes are drawn with, and 224 for others.
        force: replace an existing prepared folder.
        json: print the manifest as one JSON object.
    """
    from data_pipelines.captions.opening import has_captions
    from data_pipelines.prepare import prepare
    from data_pipelines.tokenizers import CHARS, Tokenizer, open_tokenizer
    from data_pipelines.vocabularies import learn_from, wanted

    if has_captions(spec):
        text_options = (tokenizer, min_freq, dtype) != (CHARS, 1, "auto")
        return _prepare_images(spec, folder, side, text_options, force, json)
    chosen_dtype = None if dtype == "auto" else dtype
    threads = workers or cores()
    with ProgressBar() as progress:
        if want := wanted(tokenizer):
            chosen: Tokenizer | None = learn_from((spec,), want, 0.0, min_freq, progress)
        else:
            chosen = None if tokenizer == CHARS else open_tokenizer(tokenizer)
        made = prepare(spec, folder, min_freq, chosen, chosen_dtype, progress, force, threads)
    if json:
        _emit({"folder": str(folder), **made})
    else:
        arch = "charlm:tiny" if tokenizer == CHARS else "wikigpt:tiny"
        print(
            f"{made['tokens']:,} tokens of {made['documents']:,} "
            f"{'document' if made['documents'] == 1 else 'documents'}, "
            f"{made['vocab_size']:,} in the vocabulary, "
            f"{made['unknown']:,} not in it; written to {folder}\n"
            f"next: jaxmodels train {arch} --data bin:{folder} --out runs/first"
        )
    return 0


def _prepare_images(
    spec: str, folder: Path, side: int | None, text_options: bool, force: bool, json: bool
) -> int:
    from data_pipelines.captions.prepare import prepare_images
    from data_pipelines.captions.prepared import notes_of
    from data_pipelines.errors import USAGE, DataProblem

    if text_options:
        raise DataProblem(
            "captions are tokenised when the folder is opened, not before",
            where=spec,
            fix="leave out --tokenizer, --min-freq and --dtype; give --tokenizer to train",
            exit_code=USAGE,
        )
    with ProgressBar() as progress:
        made = prepare_images(spec, folder, side, progress, force)
    if json:
        _emit({"folder": str(folder), **made})
    else:
        train, valid = made["images"]["train"], made["images"]["valid"]
        asked = made.get("questions")
        texts = f"{asked:,} questions" if asked else f"{made['captions']:,} captions"
        for note in notes_of(made):
            print(note)
        print(
            f"{train:,} images, and {valid:,} held out, with {texts}; "
            f"written to {folder}\n"
            f"next: jaxmodels train bitgen:tiny --data bin:{folder} --out runs/first"
        )
    return 0


def tokenizer_(
    data: str,
    out: Path,
    kind: Literal["bpe", "unigram", "chars", "bytes"] = "bpe",
    vocab: int = 8000,
    special: tuple[str, ...] = (),
    held_out: float = 0.05,
    max_bytes: int = 10**9,
    force: bool = False,
    json: bool = False,
) -> int:
    """Make a vocabulary from a text, and report how many bytes its tokens have.

    The file is a tokenizer.json (of chars a characters.json), which --tokenizer takes. bpe,
    unigram and bytes have a token for each byte, so that they encode every text.

    Args:
        data: the text; see `jaxmodels data list`.
        out: the file to write.
        kind: bpe and unigram: parts of words; chars: the most frequent characters; bytes: the 256
            bytes.
        vocab: tokens in all, special ones included; of bytes always 256 and these.
        special: special tokens besides <|endoftext|>, which separates documents.
        held_out: share of the text, from its end, that is measured on and not learned from.
        max_bytes: bytes of the text to read, at most.
        force: replace an existing file.
        json: print one JSON object.
    """
    from data_pipelines.making import make

    with ProgressBar() as progress:
        report = make(data, out, kind, vocab, special, held_out, max_bytes, force, progress)
    if json:
        _emit(report)
        return 0
    rate, theirs = report["bytes_per_token"], report["gpt2_bytes_per_token"]
    learned = f"{report['learned_bytes']:,} bytes"
    print(f"{report['vocab_size']:,} tokens, made from {learned}; written to {out}")
    if kind != "bytes" and report["vocab_size"] < vocab:
        print(f"{vocab:,} were asked for; the text has no more that occur often enough")
    if rate is None:
        print("nothing was held out to measure on")
    else:
        print(
            f"{rate:.3f} bytes a token on {report['held_out_bytes']:,} bytes that were held out; "
            f"GPT-2's vocabulary of 50,257: {theirs:.3f}"
        )
    if report["unknown"]:
        print(f"{report['unknown']:,} of these tokens stand for characters not in the vocabulary")
    arch = "charlm:tiny" if kind == "chars" else "wikigpt:tiny"
    print(f"next: jaxmodels train {arch} --data {data} --tokenizer {out} --out runs/first")
    return 0


def inspect_(
    what: Either, tokenizer: str = "chars", valid_fraction: float = 0.05, json: bool = False
) -> int:
    """Show tokens, vocabulary, splits and an excerpt of a prepared folder or a text.

    For images with captions also the sizes of the images.

    Exits with 3 if the files of a folder are not those in its manifest.

    Args:
        what: a prepared folder, or a spec.
        tokenizer: of a text: chars, gpt2, words (of captions) or a PATH.
        valid_fraction: share of the tokens, from the end, that is held out; of images, unless the
            source has a validation split.
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
    """Measure tokens per second: the loader, plain numpy sampling of the same file, tokenising.

    For images with captions, images per second: the loader, and decoding.

    Args:
        what: a prepared folder, or a spec.
        tokenizer: timed on a text: gpt2 or a PATH; a folder of tokens has its own.
        context: inputs in a window; tokens of a caption.
        batch: windows, or images, in a batch.
        json: print one JSON object.
    """
    from data_pipelines import reports
    from data_pipelines.captions.opening import has_captions

    spec = f"bin:{what}" if Path(what).exists() else what
    if has_captions(spec):
        from data_pipelines.captions.reports import time_images

        rates = time_images(spec, tokenizer, context, batch)
        if json:
            _emit({"context": context, "batch": batch, "images_per_second": rates})
        else:
            print("\n".join(f"{name:<18} {rate:10,.0f} images/s" for name, rate in rates.items()))
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
    """A value of a report in readable form."""
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
