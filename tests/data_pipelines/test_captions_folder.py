import csv
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.captions.examples import open_examples
from data_pipelines.captions.prepared import read_captions_manifest, read_rows
from data_pipelines.errors import DataProblem
from data_pipelines.pipelines import open_data
from tests.data_pipelines.captioned_on_disk import picture

SIZES = {"context": 16, "batch": 2, "tokenizer": "gpt2", "side": 14, "valid_fraction": 0.0}


def write_csv(folder, rows, name="captions.csv", header=("file", "caption")):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    (folder / name).write_bytes(text.getvalue().encode())


def write_json(folder, images, annotations, name="captions_train.json"):
    found = {
        "images": [{"id": i, "file_name": file} for i, file in images],
        "annotations": [
            {"image_id": image, "caption": sentences, "id": i}
            for i, (image, sentences) in enumerate(annotations)
        ],
    }
    (folder / name).write_text(json.dumps(found))


@pytest.fixture
def folder(tmp_path):
    """Images a.png to d.png, of four colours."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/c.png", "d.png")):
        (folder / name).write_bytes(picture(20 * i))
    return folder


def opened(where, spec=None, **changes):
    spec = spec or f"images:{where}"
    return open_data(spec, **{"folder": where.parent / "data", **SIZES} | changes)


def prepared_captions(folder):
    """Name → captions, of what was prepared."""
    data = folder.parent / "data"
    return {row.name: row.captions for row in read_rows(data, read_captions_manifest(data))}


def test_csv_and_json_tell_the_same(folder, tmp_path):
    write_csv(folder, [("a.png", "red, or so"), ("more/c.png", 'a "c"'), ("a.png", "two\nlines")])
    opened(folder)
    by_csv = prepared_captions(folder)
    assert by_csv == {"a.png": ("red, or so", "two\nlines"), "more/c.png": ('a "c"',)}
    (folder / "captions.csv").unlink()
    annotations = [(7, "red, or so"), (3, 'a "c"'), (7, "two\nlines")]
    write_json(folder, [(7, "a.png"), (3, "more/c.png")], annotations)
    opened(folder, folder=tmp_path / "json")
    data = tmp_path / "json"
    assert {r.name: r.captions for r in read_rows(data, read_captions_manifest(data))} == by_csv


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    sentences=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=4)
)
def test_any_caption_comes_back(folder, sentences):
    write_json(folder, [(1, "a.png")], [(1, text) for text in sentences])
    assert open_examples(f"images:{folder}", folder).train[0].captions == tuple(sentences)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_what_is_left_out_is_counted_and_told(folder, kind):
    (folder / "broken.png").write_bytes(picture(1)[:60])
    (folder / "text.png").write_text("no image")
    files = ["a.png", "broken.png", "text.png", "gone.png", "b.png", "d.png"]
    sentences = ["a", "broken", "text", "gone", " \t", "d"]
    if kind == "csv":
        write_csv(folder, [*zip(files, sentences, strict=True), ("d.png", "")])
    else:
        images = list(enumerate(files))
        write_json(folder, images, [*enumerate(sentences), (5, ""), (99, "of none")])
    data = opened(folder, batch=1)
    assert prepared_captions(folder) == {"a.png": ("a",), "d.png": ("d",)}
    notes = "\n".join(data.notes)
    assert "1 images that are not there are left out: gone.png" in notes
    assert "2 images that cannot be read are left out: broken.png, text.png" in notes
    assert "2 captions that say nothing are left out: b.png, d.png" in notes
    assert "1 images that have no caption are left out: b.png" in notes
    assert ("captions of images that the file does not list" in notes) == (kind == "json")
    assert (data.train_images, len(data.captions.ends)) == (2, 2)


def test_an_annotation_twice_is_counted(folder):
    write_json(folder, [(1, "a.png"), (2, "b.png")], [(1, "a"), (2, "b")])
    found = json.loads((folder / "captions_train.json").read_text())
    found["annotations"].append({"image_id": 2, "caption": "another", "id": 0})
    (folder / "captions_train.json").write_text(json.dumps(found))
    assert "1 captions whose id another one has are left out: another" in opened(folder).notes[0]


def test_names_of_what_is_left_out_are_few(folder):
    write_csv(folder, [("a.png", "a"), *((f"gone{i}.png", "gone") for i in range(9))])
    assert opened(folder).notes == [
        "9 images that are not there are left out: gone0.png, gone1.png, gone2.png, …"
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("captions.json", b"{", "it is not JSON"),
        ("captions.json", b"\xff\xfe{", "codec can't decode"),
        ("captions.json", b"[]", "it is not COCO's format"),
        ("captions.json", b'{"images": []}', "annotations"),
        ("captions.json", b'{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ("captions.json", b'{"images": [{"id": [], "file_name": "a"}], "annotations": []}', "id"),
        ("captions.csv", b"", "must have file and caption"),
        ("captions.csv", b"a.png,a\n", "must have file and caption"),
        ("captions.csv", b"file,caption\na.png\n", "line 2 has another number of fields"),
        ("captions.csv", b"file,caption\na.png,a,b\n", "line 2 has another number of fields"),
        ("captions.csv", b'file,caption\na.png,"a\n', "line 2"),
        ("captions.csv", b"file,caption\n,a\n", "not a file name"),
    ],
)
def test_captions_that_cannot_be_read(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(DataProblem, match="these captions cannot be read") as caught:
        opened(folder)
    assert says in caught.value.why
    assert (caught.value.exit_code, caught.value.where) == (3, str(folder / name))
    assert not (folder.parent / "data").exists()


@pytest.mark.parametrize(
    ("images", "sentences", "says"),
    [
        ([(1, "a.png"), (1, "b.png")], [(1, "a")], "2 images have the id 1"),
        ([(1, "a.png"), (2, "a.png")], [(1, "a")], "2 images have the file name 'a.png'"),
        ([(1, "a.png")], [(1, 7)], "is not text: 7"),
        ([(1, 5)], [(1, "a")], "not a file name: 5"),
    ],
)
def test_json_that_contradicts_itself(folder, images, sentences, says):
    write_json(folder, images, sentences)
    with pytest.raises(DataProblem, match="these captions cannot be read") as caught:
        opened(folder)
    assert says in caught.value.why


def test_which_file_is_taken(folder):
    with pytest.raises(DataProblem, match="there are no captions") as caught:
        opened(folder)
    assert (caught.value.exit_code, caught.value.where) == (3, str(folder))
    write_csv(folder, [("a.png", "one")])
    write_csv(folder, [("b.png", "two")], "captions_more.csv")
    with pytest.raises(DataProblem, match="more than one file of captions") as caught:
        opened(folder)
    assert caught.value.exit_code == 2
    opened(folder, caught.value.fix.removeprefix("name one: "))
    assert prepared_captions(folder) == {"a.png": ("one",)}
    for name, what in (("gone", "no such folder"), ("images#gone.csv", "captions cannot be read")):
        with pytest.raises(DataProblem, match=what) as caught:
            opened(folder, f"images:{folder.parent / name}", folder=folder.parent / "new")
        assert caught.value.exit_code == 3


def test_nothing_to_train_on(folder):
    write_csv(folder, [("gone.png", "a")])
    with pytest.raises(DataProblem, match="no image with a caption") as caught:
        opened(folder)
    assert "1 images that are not there" in caught.value.why
    write_csv(folder, [("a.png", "a")])
    with pytest.raises(DataProblem, match="too few images"):
        opened(folder, valid_fraction=0.5)
    data = opened(folder, valid_fraction=1.0)
    assert (data.train_images, data.valid_images) == (0, 1)
    with pytest.raises(DataProblem, match="no image is left to train on"):
        data.train()


def saved(path, pixels, mode, palette=0, colors=256, **options):
    image = Image.fromarray(pixels).convert(mode, palette=palette, colors=colors)
    image.save(path, **options)
    return path.name


def test_images_of_all_kinds(folder):
    """What is no picture of red, green and blue becomes one; sizes do not matter."""
    red = np.full((20, 30, 3), (200, 0, 0), np.uint8)
    huge = np.zeros((3, 20_000, 3), np.uint8)
    huge[:, 9_000:11_000] = (200, 0, 0)
    files = {
        saved(folder / "grey.png", red, "L"): (60, 60, 60),
        saved(folder / "cmyk.jpg", red, "CMYK", quality=95): (200, 0, 0),
        saved(folder / "palette.png", red, "P", palette=1, colors=4): (200, 0, 0),
        saved(folder / "clear.png", red, "RGBA"): (200, 0, 0),
        saved(folder / "bits.png", red, "1"): None,
        saved(folder / "pixel.png", red[:1, :1], "RGB"): (200, 0, 0),
        saved(folder / "wide.png", huge, "RGB"): (200, 0, 0),
    }
    write_csv(folder, [(name, f"it is {name}") for name in files])
    data = opened(folder, valid_fraction=1.0, batch=len(files))
    batch = data.valid()[0]
    assert batch["images"].shape == (len(files), 14, 14, 3)
    assert data.notes == []
    for image, (name, rgb) in zip(batch["images"], files.items(), strict=True):
        if rgb:
            assert np.abs(image.astype(int) - rgb).max() <= 12, name


def test_the_middle_square_is_kept_to_its_border(folder):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255  # the square
    pixels[:, 20:25] = (255, 0, 0)
    Image.fromarray(pixels).save(folder / "wide.png")
    write_csv(folder, [("wide.png", "a")])
    image = opened(folder, valid_fraction=1.0).valid()[0]["images"][0]
    # Bicubic weights reach a pixel or two over the border.
    assert np.abs(image[:, 0].astype(int) - (255, 0, 0)).max() < 16
    assert image[:, 5:].min() > 255 - 16


def test_a_bomb_is_left_out(folder, monkeypatch):
    monkeypatch.setattr("data_pipelines.images.MAX_PIXELS", 1000)
    write_csv(folder, [("a.png", "a"), ("pixel.png", "one")])
    saved(folder / "pixel.png", np.zeros((1, 1, 3), np.uint8), "RGB")
    assert "1 images that cannot be read are left out: a.png" in opened(folder).notes[0]


def test_captions_in_other_scripts(folder):
    sentences = ["ein großes Öhr", "红色圆圈在左边", "दायरा", "🙂🙂", "e\u0301 · é"]
    write_csv(folder, [("a.png", text) for text in sentences])
    data = opened(folder, context=40)
    made = data.encode(sentences)
    for tokens, mask, text in zip(made["tokens"], made["mask"], sentences, strict=True):
        assert data.tokenizer.decode(tokens[: mask.sum() - 1]) == text
    for tokenizer in ("words", "chars"):
        own = opened(folder, tokenizer=tokenizer, context=40)
        assert own.notes == []  # its own captions it knows
        for text in sentences:
            expected = text.lower() if tokenizer == "words" else text
            assert own.tokenizer.decode(own.tokenizer.encode(text)) == expected
    # A vocabulary made elsewhere does not know them, and says so.
    write_csv(folder, [("a.png", "a red circle")])
    other = opened(folder, tokenizer="words", folder=folder.parent / "other").tokenizer
    write_csv(folder, [("a.png", text) for text in sentences])
    assert "are <UNK>: not in the vocabulary" in opened(folder, tokenizer=other).notes[0]


def test_what_changed_is_refused(folder):
    write_csv(folder, [("a.png", "a"), ("b.png", "b")])
    first = opened(folder)
    assert opened(folder).identity == first.identity
    (folder / "b.png").write_bytes(picture(9, size=(50, 50)))
    with pytest.raises(DataProblem, match="not those that were prepared") as caught:
        opened(folder)
    assert (caught.value.exit_code, caught.value.where) == (5, str(folder.parent / "data"))
    assert "image_sizes_sha256" in caught.value.why
    write_csv(folder, [("a.png", "a"), ("b.png", "c")])
    with pytest.raises(DataProblem, match="not those that were prepared") as caught:
        opened(folder)
    assert "captions_file_sha256" in caught.value.why
    assert opened(folder, f"bin:{folder.parent / 'data'}").identity == first.identity


def test_a_share_is_held_out_where_nothing_is(folder):
    for i in range(40):
        (folder / f"{i}.png").write_bytes(picture(i))
    write_csv(folder, [(f"{i}.png", f"picture {i}") for i in range(40)])
    data = opened(folder, valid_fraction=0.25)
    assert (data.train_images, data.valid_images) == (30, 10)
    held_out = {int(i) for batch in data.valid() for i in batch["image_id"]}
    it = data.train()
    assert {int(i) for _ in range(15) for i in next(it)["image_id"]} == set(range(40)) - held_out
    assert max(held_out) - min(held_out) > 20  # from all over, not the end of a sorted list
    again = opened(folder, valid_fraction=0.25, seed=7)
    assert {int(i) for batch in again.valid() for i in batch["image_id"]} == held_out
