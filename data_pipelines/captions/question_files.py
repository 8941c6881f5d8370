"""The rows of VQA's files, and the images that they name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.captions.caption_files import relative_name
from data_pipelines.errors import DataProblem

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
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
    listed = _listed(file, data)
    found: dict[Any, Path | None] = {}
    by_image: dict[Path, list[Any]] = {}
    lacking: list[Any] = []
    for key, row in asked.items():
        image = row["image_id"]
        if image not in found:
            found[image] = _image(folder, file, subtype, image, listed.get(image))
        path = found[image]
        if path is None:
            lacking.append(image)
        else:
            by_image.setdefault(path, []).append(key)
    if lacking:
        missing = list(dict.fromkeys(lacking))
        first = missing[0]
        names = [listed[first]] if first in listed else _names(subtype, first)[:3]
        raise DataProblem(
            f"{len(lacking):,} of {len(asked):,} questions are about images that are not there",
            where=str(folder),
            why=f"there is no file for the image ids {few(missing)}; for {first!r} it would be "
            f"named {' or '.join(names)}",
            fix="give the folder that has the images, or take these questions out of the file",
        )
    return by_image


def _listed(file: Path, data: dict[str, Any]) -> dict[Any, str]:
    """Image id → file name, where the file lists its images, as COCO's do."""
    if "images" not in data:
        return {}
    return {
        id_of(file, row, "id", f"image {number}"): relative_name(file, row.get("file_name"))
        for number, row in enumerate(rows_of(file, data, "images"), 1)
    }


def _image(folder: Path, file: Path, subtype: str, image: Any, listed: str | None) -> Path | None:
    """The file of an image, if it is there: under its listed name, or one of `_names`, in the
    folder or in the one named by the questions' `data_subtype`."""
    names = [listed] if listed is not None else _names(subtype, image)
    for name in names:
        for place in (folder, folder / subtype):
            path = place / relative_name(file, name)
            if path.is_file():
                return path
    return None


def _names(subtype: str, image: Any) -> list[str]:
    """What the file of an image may be called: by COCO's custom, or by its id alone."""
    stems = [str(image)]
    if isinstance(image, int):
        stems = [f"COCO_{subtype}_{image:012d}", f"{image:012d}", *stems]
    elif Path(stems[0]).suffix.lower() in _SUFFIXES:
        return stems
    return [f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]


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
