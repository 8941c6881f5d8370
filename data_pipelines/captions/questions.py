"""A folder of images with questions, in the JSON files of VQAv2.

The questions (`questions`: question_id, image_id, question) and what people answered
(`annotations`: question_id, answers, and question_type and answer_type if there are any) are two
files, or the two lists are in one. Sources: Goyal et al. 2017; visualqa.org/download.html.
"""

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_pipelines.captions.question_files import broken, few, id_of, images_of, rows_of
from data_pipelines.captions.source import Example, ImageTextSource, Question
from data_pipelines.errors import CORRUPT, MISMATCH, USAGE, DataProblem
from data_pipelines.file_search import path_of, split_name
from data_pipelines.ids import without_surrogates
from data_pipelines.limits import MAX_ANSWERS
from jaxmodels.reading import read_limited

_FILES = "*questions*.json"
_TASKS = ("OpenEnded_", "MultipleChoice_")  # in the names of questions, not of annotations


def open_questions(spec: str, rest: str) -> ImageTextSource:
    """`questions:FOLDER[#FILE[#ANSWERS]]`: the images that FILE asks about.

    FILE and ANSWERS are relative to the folder. FILE is by default the one *questions*.json in it;
    ANSWERS is by default the file beside FILE that VQAv2's naming pairs with it
    (v2_OpenEnded_X_questions.json, v2_X_annotations.json). Without any, the questions have no
    answers: a model can be asked, but neither trained nor measured. An image is found by its id,
    see `images_of`.

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
        for path, ids in images_of(folder, file, data, asked).items()
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
        exit_code=USAGE if found else CORRUPT,
    )


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and the file's sha256."""
    try:
        content = read_limited(file, MAX_ANSWERS)
        data = json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise broken(file, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise broken(file, f"it is not JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise broken(file, "it is not an object")
    return data, hashlib.sha256(content).hexdigest()


def _questions(file: Path, data: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """Id of a question → its row, in order."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows_of(file, data, "questions"), 1):
        which = f"question {number}"
        key = id_of(file, row, "question_id", which)
        if key in found:
            raise broken(file, f"two questions have the question_id {key!r}")
        id_of(file, row, "image_id", f"{which} (question_id {key!r})")
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise broken(file, f"the question {key!r} has no text: {repr(text)[:80]}")
        found[key] = row
    if not found:
        raise broken(file, "it asks nothing: its list of questions is empty")
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
    for number, row in enumerate(rows_of(source, data, "annotations"), 1):
        key = id_of(source, row, "question_id", f"annotation {number}")
        if key in found:
            raise broken(source, f"two annotations have the question_id {key!r}")
        answers = row.get("answers")
        if not isinstance(answers, list) or not answers:
            raise broken(source, f"the annotation of question {key!r} has no answers")
        texts = [a.get("answer") if isinstance(a, dict) else a for a in answers]
        if not all(isinstance(text, str) for text in texts):
            raise broken(source, f"an answer to question {key!r} is not text")
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
                raise _mismatch(file, f"{len(ids):,} questions {what}: {few(ids)}")
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


def _mismatch(file: Path, why: str) -> DataProblem:
    return DataProblem(
        "the questions and the answers do not belong together",
        where=str(file),
        why=why,
        fix="give the annotations of these questions",
        exit_code=MISMATCH,
    )
