"""Forms of caption files besides COCO's JSON and our CSV: several captions, splits, odd rows."""

import json

import pytest

from data_pipelines.captions.examples import open_examples
from data_pipelines.errors import CORRUPT, UNSAFE, USAGE, DataProblem
from tests.data_pipelines.captioned_on_disk import picture

TEXTS = ["ein großes Öhr", "红色圆圈\u2028🙂", "e\u0301 , 'quoted'"]


@pytest.fixture
def folder(tmp_path):
    """Images 0.png to 5.png, the last in a folder."""
    (tmp_path / "val2014").mkdir()
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(picture(20 * i))
    (tmp_path / "val2014" / "5.png").write_bytes(picture(100))
    return tmp_path


def found(folder, name, content, spec=""):
    (folder / name).write_text(content, encoding="utf-8")
    return open_examples(spec or f"images:{folder}", folder)


def captions(examples):
    return {example.name: list(example.captions) for example in examples}


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize(
    ("file", "caption"),
    [
        ("file", "caption"),
        ("file_name", "text"),
        ("image", "captions"),
        ("image_path", "sentences"),
    ],
)
@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl", "captions.json"])
def test_rows_of_other_programs(folder, name, file, caption):
    """A caption a row, or a list of them; an image may come in several rows."""
    rows = [{file: "0.png", caption: TEXTS}, {file: "1.png", caption: "a"}]
    rows += [{file: "1.png", caption: "b", "more": 3}]
    text = json.dumps(rows) if name.endswith(".json") else f"\ufeff{lines(rows)}\r\n\n"
    source = found(folder, name, text)
    assert captions(source.train) == {"0.png": TEXTS, "1.png": ["a", "b"]}


@pytest.mark.parametrize("header", ["image,caption", "file_name,text", "more,filename,caption"])
def test_columns_of_other_programs(folder, header):
    row = {"more": "x", "caption": "a", "text": "a"}
    line = ",".join(row.get(name, "0.png") for name in header.split(","))
    assert captions(found(folder, "captions.csv", f"{header}\n{line}\n").train) == {"0.png": ["a"]}


def karpathy(parts):
    return json.dumps(
        {
            "dataset": "flickr30k",
            "images": [
                {
                    "filename": f"{i}.png",
                    "split": part,
                    "sentences": [{"raw": f"{text} {i}", "tokens": []} for text in TEXTS],
                    **({"filepath": "val2014"} if i == 5 else {}),
                }
                for i, part in enumerate(parts)
            ],
        }
    )


def test_karpathys_splits(folder):
    parts = ["train", "val", "test", "restval", "train", "val"]
    source = found(folder, "dataset_flickr30k.json", karpathy(parts))
    assert list(captions(source.train)) == ["0.png", "3.png", "4.png"]
    assert list(captions(source.valid)) == ["1.png", "val2014/5.png"]
    assert source.valid[0].captions == tuple(f"{text} 1" for text in TEXTS)
    assert source.left_out == {"images of the split test": ["2.png"]}
    spec = f"images:{folder}#dataset_flickr30k.json:test"
    alone = open_examples(spec, folder)
    assert (list(captions(alone.train)), list(alone.valid)) == (["2.png"], [])
    assert alone.records != source.records
    with pytest.raises(DataProblem, match="no split 'dev'") as caught:
        open_examples(f"images:{folder}#dataset_flickr30k.json:dev", folder)
    assert caught.value.exit_code == USAGE
    assert "test, train, val" in caught.value.why.replace("restval, ", "")


def test_a_file_of_one_split_alone_is_all_there_is(folder):
    source = found(folder, "dataset.json", karpathy(["test", "test"]))
    assert list(captions(source.train)) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("name", "content", "code", "why"),
    [
        (
            "captions.jsonl",
            '{"file": "0.png", "caption": "a"}\n{',
            CORRUPT,
            "line 2: it is not JSON",
        ),
        ("captions.jsonl", "[1]", CORRUPT, "line 1 is not an object"),
        ("captions.jsonl", '{"file": "0.png"}', CORRUPT, "line 1 has none of caption"),
        ("captions.jsonl", '{"caption": "a"}', CORRUPT, "line 1 has none of file"),
        ("captions.jsonl", '{"file": 3, "caption": "a"}', CORRUPT, "not a file name: 3"),
        ("captions.jsonl", '{"file": "0.png", "caption": [["a"]]}', CORRUPT, "is not text"),
        ("captions.jsonl", '{"file": "../a.png", "caption": "a"}', UNSAFE, "only files in"),
        ("captions.jsonl", "\n", CORRUPT, "no row"),
        ("dataset.json", '{"images": [{"sentences": ["a"]}]}', CORRUPT, "image 1 has none of file"),
        ("dataset.json", '{"images": [3]}', CORRUPT, "it is not COCO's format"),
    ],
)
def test_rows_that_are_none(folder, name, content, code, why):
    with pytest.raises(DataProblem) as caught:
        found(folder, name, content)
    assert caught.value.exit_code == code
    assert why in caught.value.why
