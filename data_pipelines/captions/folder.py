"""A folder of images with a file of captions, in any of the usual forms (`caption_files`)."""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from data_pipelines.captions.caption_files import LeftOut, broken, read_captions
from data_pipelines.captions.source import Example, ImageTextSource
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.file_search import path_of, split_name
from data_pipelines.limits import MAX_CAPTIONS
from jaxmodels.reading import read_limited

_FILES = (
    *("captions*.json", "captions*.jsonl", "captions*.csv"),
    *("dataset*.json", "metadata.jsonl", "metadata.csv"),
)
_HELD_OUT = ("validation", "val", "valid", "test")  # splits, in order of preference
_TRAIN = ("train", "restval", "")


def open_folder(spec: str, rest: str) -> ImageTextSource:
    """`images:FOLDER[#FILE[:SPLIT]]`: the images that FILE has captions for.

    FILE, relative to the folder, has a form of `caption_files`. By default it is the one in the
    folder that has a name of `_FILES`. Where it names splits, those of validation, else of test,
    are held out; other splits are left out. With SPLIT only its images are taken.

    Raises:
        DataProblem: (corrupt) there is no such folder or file, it has another format, or two
            images have one id; (unsafe) a name leads out of the folder; (usage) there are
            several files of captions, or no such split.
    """
    given, name = split_name(rest)
    folder = path_of(given)
    if not folder.is_dir():
        raise DataProblem("there is no such folder of images", where=given, fix="check the path")
    file, split = _named(folder, name) if name else (_captions_file(folder), "")
    try:
        content = read_limited(file, MAX_CAPTIONS)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise broken(file, str(error)) from None
    left_out: LeftOut = {}
    captions, splits = read_captions(file, text, left_out)
    trained, held_out = _splits(spec, set(splits.values()), split)
    sizes, examples = hashlib.sha256(), {True: list[Example](), False: list[Example]()}
    for image, texts in captions.items():
        part = splits.get(image, "")
        if part not in trained and part != held_out:
            left_out.setdefault(f"images of the split {part}", []).append(image)
            continue
        path = folder / image
        if not path.is_file():
            left_out.setdefault("images that are not there", []).append(image)
            continue
        sizes.update(f"{image}\t{path.stat().st_size}\n".encode("utf-8", "surrogatepass"))
        examples[part in trained].append(Example(image, tuple(texts), path))
    records = {
        "captions_file_sha256": hashlib.sha256(content).hexdigest(),
        "image_sizes_sha256": sizes.hexdigest(),
        **({"split": split} if split else {}),
    }
    return ImageTextSource(spec, examples[True], examples[False], records, left_out)


def _named(folder: Path, name: str) -> tuple[Path, str]:
    """The file, and the split, of `FILE[:SPLIT]`."""
    file, colon, split = name.rpartition(":")
    if colon and not (folder / name).is_file() and (folder / file).is_file():
        return folder / file, split
    return folder / name, ""


def _splits(spec: str, known: set[str], wanted: str) -> tuple[set[str], str | None]:
    """The splits to train on, and the one that is held out (None: none is)."""
    if not wanted:
        if not known & {*_TRAIN}:  # a file of one part alone
            return known | {""}, None
        held_out = next((split for split in _HELD_OUT if split in known), None)
        return (known | {""}) & {*_TRAIN}, held_out
    if wanted in known:
        return {wanted}, None
    raise DataProblem(
        f"there is no split {wanted!r}",
        where=spec,
        why=f"the file names {', '.join(sorted(known)) or 'none'}",
        fix="give one of these, or leave it out",
        exit_code=USAGE,
    )


def _captions_file(folder: Path) -> Path:
    found = sorted(
        file
        for file in folder.iterdir()
        if any(fnmatchcase(file.name.lower(), pattern) for pattern in _FILES)
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataProblem(
            "there are no captions",
            where=str(folder),
            why=f"the folder has no {' or '.join(_FILES)}",
            fix="name the file: images:FOLDER#FILE, COCO's JSON, JSON lines, or CSV with the "
            "columns file and caption",
        )
    raise DataProblem(
        "there is more than one file of captions",
        where=str(folder),
        why=", ".join(file.name for file in found),
        fix=f"name one: images:{folder}#{found[0].name}",
        exit_code=USAGE,
    )
