"""Files of captions: COCO's JSON, Karpathy's splits of COCO and Flickr, rows of JSON, CSV.

| file | form |
|---|---|
| COCO's JSON | `images` (id, file_name) and `annotations` (image_id, caption) |
| Karpathy's JSON, as for Flickr30k | `images` (filename, sentences, split; filepath, a folder) |
| JSON lines, or a list in JSON | rows with an image's file and its caption, or a list of them |
| CSV | columns of files and captions, a caption a row |

In rows and columns the names of other programs are understood (`_FILE`, `_CAPTION`): of ALBEF,
BLIP, Flickr8k and Hugging Face's image folders.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from data_pipelines.errors import UNSAFE, DataProblem
from data_pipelines.ids import without_surrogates

_FILE = ("file", "file_name", "filename", "image", "image_path", "image_name")
_CAPTION = ("caption", "captions", "text", "texts", "sentences", "raw")

LeftOut = dict[str, list[str]]


class Listed(NamedTuple):
    """What a file lists."""

    captions: dict[str, list[str]]
    """File name of an image → its captions, in the order of the images."""
    splits: dict[str, str]
    """File name → split, of images whose split is named."""


def read_captions(file: Path, text: str, left_out: LeftOut) -> Listed:
    """The captions in a file of any form.

    Args:
        file: where the text is from; its ending tells the form.
        text: its content.
        left_out: what is left out is added: its kind → captions.

    Raises:
        DataProblem: (corrupt) it has no known form, or contradicts itself; (unsafe) a name leads
            out of the folder.
    """
    kind = file.suffix.lower()
    if kind not in (".json", ".jsonl"):
        return Listed(_from_csv(file, text), {})
    if kind == ".jsonl":
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        return _from_rows(file, ((f"line {n}", _parsed(file, line, n)) for n, line in lines))
    data = _parsed(file, text)
    if isinstance(data, list) and data:
        return _from_rows(file, ((f"row {n}", row) for n, row in enumerate(data, 1)))
    if isinstance(data, dict) and "annotations" not in data and _has_sentences(data):
        return _from_rows(file, ((f"image {n}", row) for n, row in enumerate(data["images"], 1)))
    return Listed(_from_coco(file, data, left_out), {})


def _parsed(file: Path, text: str, line: int | None = None) -> Any:
    where = "" if line is None else f"line {line}: "
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken(file, f"{where}it is not JSON: {error}") from None


def _has_sentences(data: dict[str, Any]) -> bool:
    images = data.get("images")
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and "sentences" in first


def _from_rows(file: Path, rows: Iterable[tuple[str, Any]]) -> Listed:
    """Rows, each with its name for errors, that have an image's file and its captions."""
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for which, row in rows:
        if not isinstance(row, dict):
            raise broken(file, f"{which} is not an object: {repr(row)[:80]}")
        name, texts = (row.get(_first(row, names)) for names in (_FILE, _CAPTION))
        if name is None or texts is None:
            lacking = _FILE if name is None else _CAPTION
            raise broken(file, f"{which} has none of {', '.join(lacking)}")
        if isinstance(row.get("filepath"), str) and isinstance(name, str):
            name = str(PurePath(row["filepath"]) / name)
        name = relative_name(file, name)
        captions.setdefault(name, []).extend(_texts(file, which, texts))
        if isinstance(row.get("split"), str):
            splits[name] = row["split"]
    if not captions:
        raise broken(file, "it has no row")
    return Listed(captions, splits)


def _first(known: Iterable[str], names: tuple[str, ...]) -> str:
    """The first of the names that is known; empty if none is."""
    return next((name for name in names if name in known), "")


def _texts(file: Path, which: str, value: Any) -> list[str]:
    """One caption, a list of them, or of objects that hold one each under a name of `_CAPTION`."""
    found = []
    for each in value if isinstance(value, list) else [value]:
        text = each.get(_first(each, ("raw", *_CAPTION))) if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise broken(file, f"a caption of {which} is not text: {repr(each)[:200]}")
        found.append(without_surrogates(text))
    return found


def _from_coco(file: Path, data: Any, left_out: LeftOut) -> dict[str, list[str]]:
    """File name → captions, in the order of the images."""
    try:
        names = [(_key(image["id"]), image["file_name"]) for image in data["images"]]
        texts = [(_key(a["image_id"]), a["caption"], a.get("id")) for a in data["annotations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise broken(
            file, f"it is not COCO's format: {type(error).__name__}: {str(error)[:200]}"
        ) from None
    for what, values in (
        ("id", [number for number, _ in names]),
        ("file name", [name for _, name in names]),
    ):
        number, times = Counter(map(repr, values)).most_common(1)[0] if values else ("", 0)
        if times > 1:
            raise broken(file, f"{times} images have the {what} {number[:200]}")
    captions: dict[Any, list[str]] = {number: [] for number, _ in names}
    seen = set()
    for image, caption, number in texts:
        if caption is None:
            caption = ""
        if not isinstance(caption, str):
            raise broken(file, f"the caption {number!r} is not text: {repr(caption)[:200]}")
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


def _from_csv(file: Path, text: str) -> dict[str, list[str]]:
    """As `_from_coco`."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    captions: dict[str, list[str]] = {}
    try:
        columns = rows.fieldnames or ()
        name, caption = (_first(columns, names) for names in (_FILE, _CAPTION))
        if not name or not caption:
            raise broken(file, f"its first line must have file and caption: {rows.fieldnames}")
        for row in rows:
            if None in row or None in row.values():
                why = f"line {rows.line_num} has another number of fields than the first"
                raise broken(file, why)
            captions.setdefault(relative_name(file, row[name]), []).append(row[caption])
    except csv.Error as error:
        raise broken(file, f"line {rows.reader.line_num}: {error}") from None
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
        raise broken(file, f"this is not a file name: {repr(name)[:200]}")
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise DataProblem(
            "the name of an image leads out of the folder",
            where=f"{file}: {repr(name)[:200]}",
            why="only files in the folder of images are read",
            fix="give names relative to the folder: images:FOLDER#FILE",
            exit_code=UNSAFE,
        )
    return name


def broken(file: Path, why: str) -> DataProblem:
    """The error for a file of captions that cannot be read."""
    return DataProblem(
        "these captions cannot be read",
        where=str(file),
        why=why,
        fix="give COCO's JSON (images, annotations), JSON lines with file and caption, or CSV with "
        "the columns file and caption",
    )
