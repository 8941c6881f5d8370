"""A folder of images with questions, in the JSON files of VQAv2.

The questions (`questions`: question_id, image_id, question) and what people answered
(`annotations`: question_id, answers, and question_type and answer_type if there are any) are two
files, or the two lists are in one. Sources: Goyal et al. 2017; visualqa.org/download.html.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_pipelines.captions.folder import relative_name
from data_pipelines.captions.source import Example, ImageTextSource, Question
from data_pipelines.errors import MISMATCH, USAGE, DataProblem
from data_pipelines.file_search import path_of, split_name
from data_pipelines.ids import without_surrogates
from data_pipelines.limits import MAX_ANSWERS
from jaxmodels.reading import read_limited

_FILES = "*questions*.json"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TASKS = ("OpenEnded_", "MultipleChoice_")  # in the names of questions, not of annotations
_SHOWN = 3  # ids in an error


def open_questions(spec: str, rest: str) -> ImageTextSource:
    """`questions:FOLDER[#FILE[#ANSWERS]]`: the images that FILE asks about.

    FILE and ANSWERS are relative to the folder. FILE is by default the one *questions*.json in it;
    ANSWERS is by default the file beside FILE that VQAv2's naming pairs with it
    (v2_OpenEnded_X_questions.json, v2_X_annotations.json). Without any, the questions have no
    answers: a model can be asked, but neither trained nor measured. An image is found by its id,
    see `_image`.

    Raises:
        DataProblem: (corrupt) a file is missing or has another form, or an image is missing;
            (mismatch) questions and answers do not belong together; (unsafe) the name of an image
            leads out of the folder; (usage) there are several files of questions.
    """
    given, names = split_name(rest)
    folder = path_of(given)
    if not folder.is_dir():
        raise DataProblem("there is no such folder of images", where=given, fix="check the path")
    name, answers_name = split_name(str(folder / names)) if names else ("", "")
    file = Path(name) if name else _questions_file(folder)
    data, digest = _read(file)
    asked = _questions(file, data)
    answered, more = _answers(file, data, folder / answers_name if answers_name else None)
    questions = _joined(file, asked, answered)
    examples = [
        Example(path.relative_to(folder).as_posix(), (), path, tuple(questions[i] for i in ids))
        for path, ids in _images(folder, file, data, asked).items()
    ]
    sizes = hashlib.sha256()
    for example in examples:
        size = (folder / example.name).stat().st_size
        sizes.update(f"{example.name}\t{size}\n".encode("utf-8", "surrogatepass"))
    records = {"questions_file_sha256": digest, **more, "image_sizes_sha256": sizes.hexdigest()}
    return ImageTextSource(spec, examples, (), records)


def _questions_file(folder: Path) -> Path:
    found = sorted(f for f in folder.iterdir() if fnmatchcase(f.name.lower(), _FILES))
    if len(found) == 1:
        return found[0]
    why = ", ".join(file.name for file in found) or f"the folder has no {_FILES}"
    raise DataProblem(
        "there is more than one file of questions" if found else "there are no questions",
        where=str(folder),
        why=why,
        fix=f"name one: questions:{folder}#{found[0].name if found else 'FILE'}",
        exit_code=USAGE if found else 3,
    )


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and the file's sha256."""
    try:
        content = read_limited(file, MAX_ANSWERS)
        data = json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise _broken(file, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"it is not JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise _broken(file, "it is not an object")
    return data, hashlib.sha256(content).hexdigest()


def _questions(file: Path, data: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """Id of a question → its row, in order."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(_rows(file, data, "questions"), 1):
        which = f"question {number}"
        key = _id(file, row, "question_id", which)
        if key in found:
            raise _broken(file, f"two questions have the question_id {key!r}")
        _id(file, row, "image_id", f"{which} (question_id {key!r})")
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise _broken(file, f"the question {key!r} has no text: {repr(text)[:80]}")
        found[key] = row
    if not found:
        raise _broken(file, "it asks nothing: its list of questions is empty")
    return found


def _answers(
    file: Path, data: dict[str, Any], given: Path | None
) -> tuple[dict[Any, dict[str, Any]] | None, dict[str, str]]:
    """Id of a question → its row of the annotations (None: there are none), and their identity."""
    more: dict[str, str] = {}
    if given is None and "annotations" not in data:
        given = _beside(file)
        if given is None:
            return None, more
    source = file
    if given is not None:
        source = given
        data, more["answers_file_sha256"] = _read(given)
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(_rows(source, data, "annotations"), 1):
        key = _id(source, row, "question_id", f"annotation {number}")
        if key in found:
            raise _broken(source, f"two annotations have the question_id {key!r}")
        answers = row.get("answers")
        if not isinstance(answers, list) or not answers:
            raise _broken(source, f"the annotation of question {key!r} has no answers")
        texts = [a.get("answer") if isinstance(a, dict) else a for a in answers]
        if not all(isinstance(text, str) for text in texts):
            raise _broken(source, f"an answer to question {key!r} is not text")
        found[key] = row | {"answers": texts}
    return found, more


def _beside(file: Path) -> Path | None:
    """The file of answers that VQAv2's naming pairs with a file of questions, if it is there."""
    name = file.name
    for task in _TASKS:
        name = name.replace(task, "")
    for a, b in (("questions", "annotations"), ("Questions", "Annotations")):
        other = file.with_name(name.replace(a, b))
        if other.name != name and other.is_file():
            return other
    return None


def _joined(
    file: Path, asked: dict[Any, dict[str, Any]], answered: dict[Any, dict[str, Any]] | None
) -> dict[Any, Question]:
    """The questions with their answers.

    Raises:
        DataProblem: (mismatch) a question has no answers, answers no question, or both name
            different images.
    """
    rows = answered or {}
    if answered is not None:
        others = [key for key in asked if key in rows and _other_image(asked[key], rows[key])]
        for what, ids in (
            ("have no annotation", [key for key in asked if key not in rows]),
            ("are annotated, but not asked", [key for key in rows if key not in asked]),
            ("have an annotation of another image", others),
        ):
            if ids:
                raise _mismatch(file, f"{len(ids):,} questions {what}: {_few(ids)}")
    found = {}
    for key, row in asked.items():
        known = rows.get(key, {})
        answers = tuple(map(without_surrogates, known.get("answers", ())))
        kinds = (known.get(name) for name in ("question_type", "answer_type"))
        kind, answer_kind = (text if isinstance(text, str) else "" for text in kinds)
        text = without_surrogates(row["question"])
        found[key] = Question(key, text, answers, kind, answer_kind)
    return found


def _other_image(question: dict[str, Any], annotation: dict[str, Any]) -> bool:
    return annotation.get("image_id", question["image_id"]) != question["image_id"]


def _images(
    folder: Path, file: Path, data: dict[str, Any], asked: dict[Any, dict[str, Any]]
) -> dict[Path, list[Any]]:
    """File of an image → ids of the questions about it.

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
            why=f"there is no file for the image ids {_few(missing)}; for {first!r} it would be "
            f"named {' or '.join(names)}",
            fix="give the folder that has the images, or take these questions out of the file",
        )
    return by_image


def _listed(file: Path, data: dict[str, Any]) -> dict[Any, str]:
    """Image id → file name, where the file lists its images, as COCO's do."""
    if "images" not in data:
        return {}
    return {
        _id(file, row, "id", f"image {number}"): relative_name(file, row.get("file_name"))
        for number, row in enumerate(_rows(file, data, "images"), 1)
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


def _rows(file: Path, data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = data.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _broken(file, f"it has no list of {name}")
    return rows


def _id(file: Path, row: dict[str, Any], name: str, which: str) -> int | str:
    value = row.get(name)
    if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
        return value
    raise _broken(file, f"{which} has no {name}: {repr(value)[:80]}")


def _few(ids: Iterable[Any]) -> str:
    counted = list(Counter(ids))
    more = ", …" if len(counted) > _SHOWN else ""
    return ", ".join(repr(i)[:80] for i in counted[:_SHOWN]) + more


def _broken(file: Path, why: str) -> DataProblem:
    return DataProblem(
        "these questions cannot be read",
        where=str(file),
        why=why,
        fix="give the JSON of VQAv2: questions (question_id, image_id, question), and annotations "
        "(question_id, answers)",
    )


def _mismatch(file: Path, why: str) -> DataProblem:
    return DataProblem(
        "the questions and the answers do not belong together",
        where=str(file),
        why=why,
        fix="give the annotations of these questions",
        exit_code=MISMATCH,
    )
