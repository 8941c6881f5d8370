"""Images with questions in VQAv2's files: what is read, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.captions.opening import has_questions
from data_pipelines.captions.prepare import prepare_images
from data_pipelines.captions.question_dataset import QuestionDataset, answered, prompt_length
from data_pipelines.captions.source import Question
from data_pipelines.errors import CORRUPT, MISMATCH, UNSAFE, USAGE, DataProblem
from data_pipelines.mixture_spec import asks
from data_pipelines.pipelines import open_data
from data_pipelines.tokenizers import open_tokenizer
from data_pipelines.words import build_words, with_new_words
from tests.questions_on_disk import ANSWERS, QUESTIONS, change, vqa, write


@pytest.fixture
def file(tmp_path):
    return vqa(tmp_path / "vqa", count=4)


def opened(file, tmp_path, spec=None, **options):
    sizes = {"context": 24, "batch": 2, "side": 28, "tokenizer": "words", "valid_fraction": 0.25}
    spec = spec or f"questions:{file.parent}"
    return open_data(spec, folder=tmp_path / "data", **{**sizes, **options})


def refused(code, file, tmp_path, spec=None, **options):
    with pytest.raises(DataProblem) as caught:
        opened(file, tmp_path, spec, **options)
    assert caught.value.exit_code == code, caught.value
    assert not (tmp_path / "data").exists()
    return str(caught.value)


def test_batches_hold_a_question_and_learn_its_answer(file, tmp_path):
    data = opened(file, tmp_path)
    assert isinstance(data, QuestionDataset)
    assert (data.train_images, data.valid_images) == (3, 1)
    batch = next(iter(data.train()))
    for tokens, mask, scored in zip(batch["tokens"], batch["mask"], batch["scored"], strict=True):
        text = data.tokenizer.decode(tokens[mask == 1])
        learned = data.tokenizer.decode(tokens[scored == 1])
        prompt, _, answer = text.partition(" answer: ")
        assert prompt.startswith("question: ")
        assert learned.strip() == answer
        assert answer.endswith("<|endoftext|>")
        assert answer != "unclear<|endoftext|>"  # nine of ten people said something else
    assert len({image for image, _ in data.asked()}) == 1
    assert len(data.asked()) == 9


def test_the_questions_of_an_image_take_turns(file, tmp_path):
    data = opened(file, tmp_path, valid_fraction=0.0)
    seen = set()
    for turn in range(9):
        batch = data.pairs(np.asarray([2]), np.asarray([turn]))
        seen.add(data.tokenizer.decode(batch["tokens"][0][batch["mask"][0] == 1]))
    assert len(seen) == 9


@pytest.mark.parametrize("name", ["gpt2", "words", "chars", "bytes", "bpe:300"])
def test_the_prompt_is_read_and_the_answer_learned_whatever_the_tokens(name):
    asked = Question(1, "what is\n it?", (" a\ndog", "cat", " a\ndog"))
    assert answered(asked) == "question: what is it? answer: a dog"
    texts = ["question: what is it? answer: a dog", "some more words of text"]
    if name == "words":
        tokenizer = build_words(texts)
    elif name == "gpt2":
        tokenizer = open_tokenizer(name)
    else:
        from data_pipelines.characters import CharTokenizer
        from data_pipelines.vocabularies import learn, wanted

        made = wanted(name)
        tokenizer = learn(texts, made) if made else CharTokenizer.build(texts)
    begin = prompt_length(asked, tokenizer)
    ids = tokenizer.encode(answered(asked))
    assert tokenizer.decode(ids[begin:]).strip() == "a dog"
    assert tokenizer.decode(ids[:begin]) == "question: what is it? answer:"


def test_answers_may_be_in_the_same_file_or_in_a_named_one(file, tmp_path):
    data = json.loads(file.read_text())
    answers = json.loads((file.parent / ANSWERS).read_text())
    (file.parent / ANSWERS).rename(file.parent / "people.json")
    assert opened(file, tmp_path, valid_fraction=1.0).unanswered == 36
    named = f"questions:{file.parent}#{QUESTIONS}#people.json"
    assert opened(file, tmp_path / "b", named).unanswered == 0
    file.unlink()
    write(file.parent / "all questions.json", data | answers)
    assert opened(file, tmp_path / "c").unanswered == 0


def test_images_are_found_by_id_or_listed_name(file, tmp_path):
    folder = tmp_path / "own"
    (folder / "more").mkdir(parents=True)
    names = {7: "7.JPG", "n1": "n1.png", "x.webp": "x.webp", 8: "more/eight.png"}
    names |= {9: "000000000009.jpg", 10: "more/COCO_val2014_000000000010.jpg", 11: "more/11.png"}
    for name in names.values():
        Image.new("RGB", (30, 20), "red").save(folder / name)
    rows = [{"question_id": f"q{i}", "image_id": i, "question": "què?"} for i in names]
    people = [{"question_id": row["question_id"], "answers": ["vermell"]} for row in rows]
    listed = [{"id": 8, "file_name": "more/eight.png"}]
    write(folder / "questions.json", {"questions": rows, "images": listed, "annotations": people})
    data = opened(file, tmp_path, f"questions:{folder}", valid_fraction=0.2)
    assert [q.id for each in data.questions for q in each] == [f"q{i}" for i in names]


def test_an_id_of_several_images(file, tmp_path):
    """`data_subtype` decides, if it can."""
    (file.parent / "train2014").mkdir()
    first = file.parent / "val2014" / "COCO_val2014_000000000000.png"
    (file.parent / "train2014" / first.name.replace("val", "train")).write_bytes(first.read_bytes())
    assert opened(file, tmp_path).train_images == 3
    data = json.loads(file.read_text())
    write(file, data | {"data_subtype": ""})
    assert "may be" in refused(CORRUPT, file, tmp_path / "b")


def test_a_prepared_folder_opens_the_same(file, tmp_path):
    spec, folder = f"questions:{file.parent}", tmp_path / "prepared"
    made = prepare_images(spec, folder, 28)
    assert (made["questions"], made["captions"]) == (36, 0)
    here, there = (opened(file, tmp_path / n, s) for n, s in (("a", spec), ("b", f"bin:{folder}")))
    assert here.questions == there.questions
    for one, other in zip(here.valid(), there.valid(), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert has_questions(f"bin:{folder}")
    assert asks(f"bin:{folder}")
    assert asks("mix:1*pydoc,1*questions:shapes")
    assert not asks("mix:1*pydoc,1*shapes")


def test_one_image_and_a_batch_larger_than_the_data(file, tmp_path):
    for name in ("questions", "annotations"):
        where = file if name == "questions" else file.parent / ANSWERS
        change(where, name, lambda rows: [row for row in rows if row["image_id"] == 0])
    data = opened(file, tmp_path, batch=8, valid_fraction=0.0)
    assert next(iter(data.train()))["tokens"].shape == (8, 24)
    with pytest.raises(DataProblem, match="too few images"):
        opened(file, tmp_path, valid_fraction=0.5)


@pytest.mark.parametrize(
    ("change_to", "code", "why"),
    [
        ({"image_id": None}, CORRUPT, "has no image_id"),
        ({"image_id": 77}, CORRUPT, "images that are not there"),
        ({"image_id": "../../secret"}, UNSAFE, "leads out of the folder"),
        ({"question": " "}, CORRUPT, "has no text"),
        ({"question": 3}, CORRUPT, "has no text"),
        ({"question_id": 10}, CORRUPT, "two questions"),
        ({"question_id": 1000}, MISMATCH, "have no annotation"),
        ({"image_id": 1}, MISMATCH, "another image"),
    ],
)
def test_a_question_that_is_none(file, tmp_path, change_to, code, why):
    change(file, "questions", lambda rows: [rows[0] | change_to, *rows[1:]])
    if code != MISMATCH and "image_id" in change_to:
        answers = file.parent / ANSWERS
        change(answers, "annotations", lambda rows: [rows[0] | change_to, *rows[1:]])
    assert why in refused(code, file, tmp_path)


@pytest.mark.parametrize(
    ("change_to", "code", "why"),
    [
        (lambda rows: rows[1:], MISMATCH, "1 questions have no annotation: 0"),
        (lambda rows: [*rows, rows[0]], CORRUPT, "two annotations"),
        (lambda rows: [*rows, rows[0] | {"question_id": -1}], MISMATCH, "not asked"),
        (lambda rows: [rows[0] | {"answers": []}, *rows[1:]], CORRUPT, "has no answers"),
        (lambda rows: [rows[0] | {"answers": [1]}, *rows[1:]], CORRUPT, "is not text"),
        (lambda rows: None, CORRUPT, "no list of annotations"),
    ],
)
def test_annotations_that_do_not_fit(file, tmp_path, change_to, code, why):
    change(file.parent / ANSWERS, "annotations", change_to)
    assert why in refused(code, file, tmp_path)


def test_files_that_are_none(file, tmp_path):
    spec = f"questions:{file.parent}"
    assert "no such folder" in refused(CORRUPT, file, tmp_path, "questions:nowhere")
    assert "cannot be read" in refused(CORRUPT, file, tmp_path, f"{spec}#other.json")
    assert "cannot be read" in refused(CORRUPT, file, tmp_path, f"{spec}#{QUESTIONS}#no.json")
    write(file.parent / "more_questions.json", {})
    assert "more than one file" in refused(USAGE, file, tmp_path)
    file.write_bytes(b"\xff{")
    assert "not JSON" in refused(CORRUPT, file, tmp_path, f"{spec}#{QUESTIONS}")
    assert "unknown data" in refused(USAGE, file, tmp_path, "questions:")


def test_questions_without_answers_are_not_trained_on(file, tmp_path):
    (file.parent / ANSWERS).unlink()
    with pytest.raises(DataProblem, match="cannot be learned from"):
        opened(file, tmp_path)


def test_new_words_follow_the_others(file, tmp_path):
    """And the ids of the known ones stay."""
    known = build_words(["a red circle is left of a blue square"])
    data = opened(file, tmp_path, tokenizer=known, new_words=True)
    grown = data.tokenizer
    assert grown.vocab_size > known.vocab_size
    text = "a red circle"
    assert grown.encode(text).tolist() == known.encode(text).tolist()
    assert not data.captions.unknown
    assert with_new_words(grown, ["a circle"]) == grown
    for tokenizer, spec in ((open_tokenizer("gpt2"), None), (known, "pydoc")):
        why = "not words" if spec is None else "images with captions or questions only"
        with pytest.raises(DataProblem, match=why):
            opened(file, tmp_path, spec, tokenizer=tokenizer, new_words=True)
