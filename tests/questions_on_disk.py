"""A folder of drawn scenes with questions, in the files of VQAv2."""

import json
from pathlib import Path

from PIL import Image

from data_pipelines.captions.drawn_questions import questions
from data_pipelines.captions.shapes import draw, scene

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "v2_mscoco_val2014_annotations.json"


def vqa(path: Path, count: int = 20, side: int = 28, answers: bool = True) -> Path:
    """Writes images, questions and answers of ten people each; the file of questions."""
    (path / "val2014").mkdir(parents=True)
    asked, annotations = [], []
    for i in range(count):
        name = f"COCO_val2014_{i:012d}.png"
        Image.fromarray(draw(scene(i), side)).save(path / "val2014" / name)
        for question in questions(i):
            row = {"question_id": question.id, "image_id": i}
            asked.append(row | {"question": f"{question.text.capitalize()}?"})
            people = [{"answer": question.answers[0], "answer_id": k + 1} for k in range(10)]
            people[0]["answer"] = "unclear"
            types = {"question_type": question.kind, "answer_type": "other"}
            annotations.append(row | types | {"answers": people})
    data = {"data_subtype": "val2014", "data_type": "mscoco", "questions": asked}
    write(path / QUESTIONS, data)
    if answers:
        write(path / ANSWERS, {"annotations": annotations})
    return path / QUESTIONS


def write(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def change(file: Path, name: str, change) -> None:
    """Applies `change` to the list `name` of a JSON file."""
    data = json.loads(file.read_text())
    data[name] = change(data[name])
    write(file, data)
