"""The rows of VQA's files, and the images that they name."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.captions.caption_files import relative_name
from data_pipelines.errors import DataProblem

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COCO = re.compile(r"(?:COCO_.+_)?(\d{12})")
_SHOWN = 3  # ids in an error


def images_of(
    folder: Path, file: Path, data: dict[str, Any], asked: dict[Any, dict[str, Any]]
) -> dict[Path, list[Any]]:
    """File of an image → ids of the questions about it.

    Args:
        folder: of the images.
        file: the file of questions, for errors.
        data: its content; it may list its images (`images`: id, file_name), and name the part of
            COCO that they are from (`data_subtype`).
        asked: id of a question → its row.

    Raises:
        DataProblem: (corrupt) an image is missing: an accuracy would leave out its questions.
    """
    subtype = data.get("data_subtype")
    subtype = relative_name(file, subtype) if subtype else ""
    listed, index = _listed(file, data), _index(folder)
    found: dict[Any, Path | None] = {}
    by_image: dict[Path, list[Any]] = {}
    lacking: list[Any] = []
    for key, row in asked.items():
        image = row["image_id"]
        if image not in found:
            known = folder / listed[image] if image in listed else None
            found[image] = known or _image(file, index, subtype, image)
        path = found[image]
        if path is None or not path.is_file():
            lacking.append(image)
        else:
            by_image.setdefault(path, []).append(key)
    if lacking:
        raise _missing(folder, len(asked), lacking, subtype, listed)
    return by_image


def _missing(
    folder: Path, count: int, lacking: list[Any], subtype: str, listed: dict[Any, str]
) -> DataProblem:
    """The error for questions, one for each of the lacking ids, whose images are not there."""
    first = lacking[0]
    name = listed.get(first) or f"{first}.jpg"
    if isinstance(first, int) and first not in listed:
        name += f", or COCO_{subtype or 'val2014'}_{first:012d}.jpg"
    return DataProblem(
        f"{len(lacking):,} of {count:,} questions are about images that are not there",
        where=str(folder),
        why=f"there is no file for the image ids {few(lacking)}; for {first!r} it would be "
        f"named {name}",
        fix="give the folder that has the images, or take these questions out of the file",
    )


def _listed(file: Path, data: dict[str, Any]) -> dict[Any, str]:
    """Image id → file name, where the file lists its images, as COCO's do."""
    if "images" not in data:
        return {}
    return {
        id_of(file, row, "id", f"image {number}"): relative_name(file, row.get("file_name"))
        for number, row in enumerate(rows_of(file, data, "images"), 1)
    }


def _index(folder: Path) -> dict[str | int, list[Path]]:
    """The images in a folder and the folders in it, by name, by name without its ending, and by the
    number in COCO's names (COCO_val2014_000000000007.jpg, 000000000007.jpg)."""
    found: dict[str | int, list[Path]] = {}
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in _SUFFIXES:
                number = _COCO.fullmatch(path.stem)
                keys: list[str | int] = [path.name, path.stem]
                for key in keys + ([int(number[1])] if number else []):
                    found.setdefault(key, []).append(path)
    return found


def _image(file: Path, index: dict[str | int, list[Path]], subtype: str, image: Any) -> Path | None:
    """The file of an image by its id, if it is there.

    Raises:
        DataProblem: (corrupt) there are several.
    """
    name = str(image) if isinstance(image, int) else relative_name(file, image)
    numbered = index.get(image, []) if isinstance(image, int) else []
    paths = list(dict.fromkeys([*numbered, *index.get(name, [])]))
    if len(paths) > 1:
        paths = [p for p in paths if subtype in (p.parent.name, *p.stem.split("_"))] or paths
    if len(paths) > 1:
        raise broken(file, f"the image id {image!r} may be {paths[0]} or {paths[1]}")
    return paths[0] if paths else None


def rows_of(file: Path, data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects of this name; raises DataProblem (corrupt) where there is none."""
    rows = data.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise broken(file, f"it has no list of {name}")
    return rows


def id_of(file: Path, row: dict[str, Any], name: str, which: str) -> int | str:
    """The id of this name in a row; raises DataProblem (corrupt) where `which` has none."""
    value = row.get(name)
    if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
        return value
    raise broken(file, f"{which} has no {name}: {repr(value)[:80]}")


def few(ids: Iterable[Any]) -> str:
    """The first ids, for an error."""
    counted = list(dict.fromkeys(ids))
    more = ", …" if len(counted) > _SHOWN else ""
    return ", ".join(repr(i)[:80] for i in counted[:_SHOWN]) + more


def broken(file: Path, why: str) -> DataProblem:
    """The error for a file of questions or answers that cannot be read."""
    return DataProblem(
        "these questions cannot be read",
        where=str(file),
        why=why,
        fix="give the JSON of VQAv2: questions (question_id, image_id, question), and annotations "
        "(question_id, answers)",
    )
