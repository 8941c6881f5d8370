"""A folder of images with a file of captions: COCO's JSON, or CSV."""

import csv
import hashlib
import io
import json
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from data_pipelines.captions.source import Example, ImageTextSource
from data_pipelines.errors import UNSAFE, USAGE, DataProblem
from data_pipelines.file_search import path_of, split_name
from data_pipelines.ids import without_surrogates
from data_pipelines.limits import MAX_CAPTIONS
from jaxmodels.reading import read_limited

_FILES = ("captions*.json", "captions*.csv")

LeftOut = dict[str, list[str]]


def open_folder(spec: str, rest: str) -> ImageTextSource:
    """`images:FOLDER[#FILE]`: the images that FILE has captions for.

    FILE, relative to the folder, is COCO's JSON (`images`: id and file_name; `annotations`:
    image_id and caption), or CSV with the columns file and caption, a caption a row. By default
    it is the one captions*.json or captions*.csv in the folder.

    Raises:
        DataProblem: (corrupt) there is no such folder or file, it has another format, or two
            images have one id; (unsafe) a name leads out of the folder; (usage) there are
            several files of captions.
    """
    given, name = split_name(rest)
    folder = path_of(given)
    if not folder.is_dir():
        raise DataProblem("there is no such folder of images", where=given, fix="check the path")
    file = folder / name if name else _captions_file(folder)
    try:
        content = read_limited(file, MAX_CAPTIONS)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise _broken(file, str(error)) from None
    left_out: LeftOut = {}
    read = _from_json if file.suffix.lower() == ".json" else _from_csv
    captions = read(file, text, left_out)
    sizes, examples = hashlib.sha256(), []
    for image, texts in captions.items():
        path = folder / image
        if not path.is_file():
            left_out.setdefault("images that are not there", []).append(image)
            continue
        sizes.update(f"{image}\t{path.stat().st_size}\n".encode("utf-8", "surrogatepass"))
        examples.append(Example(image, tuple(texts), path))
    records = {
        "captions_file_sha256": hashlib.sha256(content).hexdigest(),
        "image_sizes_sha256": sizes.hexdigest(),
    }
    return ImageTextSource(spec, examples, (), records, left_out)


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
            fix="name the file: images:FOLDER#FILE, COCO's JSON or CSV with the columns file and "
            "caption",
        )
    raise DataProblem(
        "there is more than one file of captions",
        where=str(folder),
        why=", ".join(file.name for file in found),
        fix=f"name one: images:{folder}#{found[0].name}",
        exit_code=USAGE,
    )


def _from_json(file: Path, text: str, left_out: LeftOut) -> dict[str, list[str]]:
    """File name → captions, in the order of the images."""
    try:
        data = json.loads(text)
        names = [(_key(image["id"]), image["file_name"]) for image in data["images"]]
        texts = [(_key(a["image_id"]), a["caption"], a.get("id")) for a in data["annotations"]]
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"it is not JSON: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise _broken(
            file, f"it is not COCO's format: {type(error).__name__}: {str(error)[:200]}"
        ) from None
    for what, values in (
        ("id", [number for number, _ in names]),
        ("file name", [name for _, name in names]),
    ):
        number, times = Counter(map(repr, values)).most_common(1)[0] if values else ("", 0)
        if times > 1:
            raise _broken(file, f"{times} images have the {what} {number[:200]}")
    captions: dict[Any, list[str]] = {number: [] for number, _ in names}
    seen = set()
    for image, caption, number in texts:
        if caption is None:
            caption = ""
        if not isinstance(caption, str):
            raise _broken(file, f"the caption {number!r} is not text: {repr(caption)[:200]}")
        caption = without_surrogates(caption)
        if image not in captions:
            left_out.setdefault("captions of images that the file does not list", []).append(
                caption
            )
        elif number is not None and repr(number) in seen:
            left_out.setdefault("captions whose id another one has", []).append(caption)
        else:
            captions[image].append(caption)
        seen.add(repr(number))
    return {relative_name(file, name): captions[number] for number, name in names}


def _from_csv(file: Path, text: str, left_out: LeftOut) -> dict[str, list[str]]:
    """As `_from_json`."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    captions: dict[str, list[str]] = {}
    try:
        if not {"file", "caption"} <= set(rows.fieldnames or ()):
            raise _broken(file, f"its first line must have file and caption: {rows.fieldnames}")
        for row in rows:
            if None in row or None in row.values():
                why = f"line {rows.line_num} has another number of fields than the first"
                raise _broken(file, why)
            captions.setdefault(relative_name(file, row["file"]), []).append(row["caption"])
    except csv.Error as error:
        raise _broken(file, f"line {rows.reader.line_num}: {error}") from None
    return captions


def _key(value: Any) -> int | str:
    if isinstance(value, int | str):
        return value
    raise TypeError(f"{value!r} is not an id")


def relative_name(file: Path, name: Any) -> str:
    """The name of an image, which must be in the folder or below it.

    Raises:
        DataProblem: (corrupt) it is not a name; (unsafe) it leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise _broken(file, f"this is not a file name: {repr(name)[:200]}")
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise DataProblem(
            "the name of an image leads out of the folder",
            where=f"{file}: {repr(name)[:200]}",
            why="only files in the folder of images are read",
            fix="give names relative to the folder: images:FOLDER#FILE",
            exit_code=UNSAFE,
        )
    return name


def _broken(file: Path, why: str) -> DataProblem:
    return DataProblem(
        "these captions cannot be read",
        where=str(file),
        why=why,
        fix="give COCO's JSON (images, annotations), or CSV with the columns file and caption",
    )
