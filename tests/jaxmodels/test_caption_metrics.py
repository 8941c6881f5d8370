"""BLEU-4, ROUGE-L and CIDEr-D, against numbers of COCO's own code; the card's table."""

import pytest

from jaxmodels.commands.eval_images import lines, refuse_no_captions, table
from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.caption_metrics import caption_metrics, words
from tests.contract import small

CAPTIONS = [
    "a red circle above a blue square",
    "two cats sleep on a couch",
    "a dog",
    "a man rides a horse on the beach at sunset",
    "a a a a a",
    "a small green triangle",
]
REFERENCES = [
    ["a red circle is above a blue square", "the circle is red"],
    ["two cats are sleeping on the couch", "a couch with two cats on it", "cats"],
    ["a brown dog runs through the grass"],
    ["a man riding a horse on a beach", "someone on a horse near the sea at sunset"],
    ["a plate of food on a table", "a table with a plate"],
    ["a small green triangle", "one green triangle"],
]
# By pycocoevalcap 1.2.
COCO = {
    "bleu_4": 0.28668797665094664,
    "rouge_l": 0.7060748501324637,
    "cider": 2.490028932132113,
}
RESULT = {
    "loss": 1.0,
    "images": 256,
    "captions": 1280,
    **{f"{way}_recall_at_{k}": k / 20 for way in ("t2i", "i2t") for k in (1, 5, 10)},
}


def test_numbers_are_those_of_cocos_code():
    assert caption_metrics(CAPTIONS, REFERENCES) == pytest.approx(COCO, abs=1e-12)


def test_case_and_punctuation_do_not_count():
    assert words("A man's dog -- it RUNS, fast.") == ["a", "man's", "dog", "it", "runs", "fast"]
    found = caption_metrics(["A Red Circle, above a blue square!", *CAPTIONS[1:]], REFERENCES)
    assert found == pytest.approx(COCO, abs=1e-12)


def test_captions_that_say_nothing_score_nothing():
    found = caption_metrics(["", "!"], [["a cat"], ["a dog"]])
    assert found == pytest.approx({"bleu_4": 0, "rouge_l": 0, "cider": 0}, abs=1e-6)


def test_the_cards_table():
    text = table(RESULT | COCO | {"itm_acc": 0.9}, "shapes")
    assert text.startswith("Held-out part of `shapes`: 256 images, 1,280 captions.\n\n| Metric |")
    for row in (
        "| Text→Image Recall@1 | 5.0% |",
        "| Image→Text Recall@5 | 25.0% |",
        "| Image-text matching accuracy | 90.0% |",
        "| CIDEr-D | 2.490 |",
    ):
        assert row in text.splitlines()
    assert "CIDEr" not in table(RESULT, "shapes")
    assert lines(RESULT | COCO)[-1] == "captions: BLEU-4 0.287, ROUGE-L 0.706, CIDEr-D 2.490"


def test_a_model_that_writes_no_captions_is_refused(tmp_path):
    with pytest.raises(Problem, match="bitgen_stage1 writes no captions") as caught:
        refuse_no_captions(small("bitgen_stage1"), tmp_path)
    assert caught.value.exit_code == USAGE
    refuse_no_captions(small("bitgen"), tmp_path)
