"""`jaxmodels memory`: what is written is found again, and forgotten without a trace."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import bridge
import jaxmodels
from data_pipelines.captions.shapes import captions, draw, scene
from data_pipelines.words import build_words
from jaxmodels.bitgen import record
from jaxmodels.errors import CORRUPT, NO_SPACE, USAGE
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline
from tests.bridge.helpers import command, flip
from tests.contract import smallest

SCENES = [scene(i) for i in range(8)]
TEXTS = [captions(each)[0] for each in SCENES]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A bitgen of random numbers that tells texts and images apart, as a model directory."""
    folder = tmp_path_factory.mktemp("memory") / "model"
    tokenizer = build_words(TEXTS)
    config = replace(smallest("bitgen"), vocab=tokenizer.vocab_size, slots=8, queue=4)
    graphdef, params, rest = split(outline(jaxmodels.arch("bitgen"), config))
    rng = np.random.default_rng(1)
    params = {
        p: jnp.asarray(rng.standard_normal(x.shape) * 0.3, x.dtype) for p, x in params.items()
    }
    model = graphdef.merge(params, {p: jnp.zeros(x.shape, x.dtype) for p, x in rest.items()})
    tokenizer.save(folder.parent)
    bridge.save(model, folder.parent / "bare")
    bridge.convert(folder.parent / "bare", folder, vocab=folder.parent / "tokenizer.json")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of the scenes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, each in enumerate(SCENES):
        Image.fromarray(draw(each, 56)).save(folder / f"{i}.png")
    return folder


def memory(capsys, *words):
    """Exit code, the JSON object, and what went to standard error."""
    return command(capsys, "memory", *words, "--json")


def test_what_is_written_is_found_with_where_it_came_from(folder, pictures, capsys):
    picture = pictures / "0.png"
    code, result, _ = memory(
        capsys, "write", folder, "--text", TEXTS[1], TEXTS[2], "--source", "my notes"
    )  # fmt: skip
    assert (code, result["items"]) == (0, 2)
    memory(capsys, "write", folder, "--image", picture, "--caption", TEXTS[0])
    assert damage(folder) == []
    for words in (("--text", TEXTS[0]), ("--image", picture)):
        _, found, _ = memory(capsys, "read", folder, *words)
        assert (found["written"], found["text"]) == (True, TEXTS[0])
        assert found["nearest"]["source"] == str(picture)
        assert found["nearest"]["kind"] == "caption"
        assert found["nearest"]["similarity"] == pytest.approx(1, abs=1e-5)
    assert found["nearest"]["held"] > 0.99  # the memory itself has it at the image's key
    _, found, _ = memory(capsys, "read", folder, "--text", TEXTS[2])
    assert (found["text"], found["nearest"]["source"]) == (TEXTS[2], "my notes")
    _, listed, _ = memory(capsys, "list", folder)
    assert [item["text"] for item in listed["items"]] == [TEXTS[1], TEXTS[2], TEXTS[0]]
    assert [item["item"] for item in listed["items"]] == [1, 2, 3]


def test_what_was_not_written_is_said_to_be_so(folder, pictures, capsys):
    for words in (("--text", TEXTS[3]), ("--image", pictures / "3.png")):
        code, found, _ = memory(capsys, "read", folder, *words)
        assert (code, found["written"], found["text"]) == (0, False, None)
    memory(capsys, "write", folder, "--image", pictures / "0.png", "--caption", TEXTS[0])
    for words in (("--text", TEXTS[3]), ("--image", pictures / "3.png")):
        _, found, _ = memory(capsys, "read", folder, *words)
        assert (found["written"], found["text"]) == (False, None)
        assert found["nearest"]["similarity"] < found["nearest"]["threshold"]
    code, out, _ = command(capsys, "memory", "read", folder, "--text", TEXTS[3])
    assert out.startswith("never written\n")


def test_forgetting_restores_every_byte(folder, original, capsys):
    memory(capsys, "write", folder, "--text", TEXTS[1])
    before = (folder / "model.safetensors").read_bytes()
    memory(capsys, "write", folder, "--text", *TEXTS[2:5])
    assert (folder / "model.safetensors").read_bytes() != before
    code, gone, _ = memory(capsys, "forget", folder, "3", "2", "4")
    assert (code, gone["items"]) == (0, 1)
    assert (folder / "model.safetensors").read_bytes() == before
    _, found, _ = memory(capsys, "read", folder, "--text", TEXTS[3])
    assert not found["written"]
    memory(capsys, "forget", folder, "--all")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (folder / name).read_bytes() == (original / name).read_bytes()
    assert damage(folder) == []


def test_a_source_is_forgotten_as_a_whole_and_numbers_are_not_given_twice(folder, capsys):
    memory(capsys, "write", folder, "--text", TEXTS[0], TEXTS[1], "--source", "a")
    memory(capsys, "write", folder, "--text", TEXTS[2], "--source", "b")
    _, gone, _ = memory(capsys, "forget", folder, "--source", "a")
    assert [item["item"] for item in gone["forgotten"]] == [1, 2]
    _, new, _ = memory(capsys, "write", folder, "--text", TEXTS[0])
    assert new["written"][0]["item"] == 4


def test_lines_of_a_file(folder, pictures, tmp_path, capsys):
    file = tmp_path / "facts.jsonl"
    lines = [
        {"text": TEXTS[0]},
        {"image": str(pictures / "1.png"), "caption": TEXTS[1]},
        {"image": str(pictures / "2.png"), "source": "a walk"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    code, result, error = memory(capsys, "write", folder, "--file", file)
    assert code == 0, error
    found = [(item["kind"], item["source"]) for item in result["written"]]
    assert found == [
        ("text", f"{file}:1"), ("caption", str(pictures / "1.png")), ("image", "a walk"),
    ]  # fmt: skip
    assert result["written"][2]["text"]  # the model's own words
    file.write_text('{"text": "a", "caption": "b"}')
    code, _, error = memory(capsys, "write", folder, "--file", file)
    assert code == CORRUPT
    assert f"{file}:1" in error


def test_the_record_goes_along(folder, tmp_path, capsys):
    memory(capsys, "write", folder, "--text", TEXTS[1], "--source", "here")
    for name, to in (("again", "safetensors"), ("half", "safetensors"), ("tree", "orbax")):
        dtype = ("--dtype", "bfloat16") if name == "half" else ()
        assert command(capsys, "convert", folder, tmp_path / name, "--to", to, *dtype)[0] == 0
        assert (tmp_path / name / "memory.json").read_bytes() == (
            folder / "memory.json"
        ).read_bytes()
    assert command(capsys, "convert", tmp_path / "tree", tmp_path / "back")[0] == 0
    _, found, _ = memory(capsys, "read", tmp_path / "back", "--text", TEXTS[1])
    assert found["nearest"]["source"] == "here"
    saved = tmp_path / "saved"
    bridge.save(bridge.load(folder), saved)
    _, listed, _ = memory(capsys, "list", saved)
    assert [item["source"] for item in listed["items"]] == ["here"]
    memory(capsys, "forget", saved, "1")


def test_sums_in_float64_come_back_to_the_last_digits(folder, tmp_path):
    rng = np.random.default_rng(0)
    model = bridge.load(folder)
    m, d = model.config.slots, model.config.dim
    w, z = rng.standard_normal((3, m)), rng.standard_normal((3, d))
    held = record.Sums(w.T @ w, w.T @ z, np.asarray(3, np.int32))  # written without a record
    vectors = (rng.standard_normal(d).astype(np.float32) for _ in range(6))
    items = [
        record.Item(0, "text", "", "", "", *three)
        for three in zip(vectors, vectors, vectors, strict=True)
    ]
    before, after = record.Record(), record.Record().with_items(items)
    written = record.changed(model.memory, held, before, after)
    assert int(written.number) == 5
    assert np.abs(written.gram - held.gram).max() > 0.1
    with jax.enable_x64(True):
        graphdef, params, rest = split(model)
        sums = zip(("gram", "total", "count"), written, strict=True)
        rest |= {f"memory/{name}": jnp.asarray(x) for name, x in sums}
        bridge.save(graphdef.merge(params, rest), tmp_path / "exact")
        memory = bridge.load(tmp_path / "exact").memory
        saved = record.Sums(*(np.asarray(x) for x in memory.stats))
    assert saved.gram.dtype == np.float64
    again = record.changed(model.memory, saved, after, after.without([1, 2]))
    for one, other in zip(again, held, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)


def test_a_full_memory_takes_nothing_more(folder, capsys):
    assert memory(capsys, "write", folder, "--text", *TEXTS[:7])[0] == 0
    before = (folder / "manifest.json").read_bytes()
    code, _, error = memory(capsys, "write", folder, "--text", TEXTS[0], TEXTS[7])
    assert code == NO_SPACE
    assert "8 slots and holds 7 items; 2 more" in error
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("read", "FOLDER", "--text", "красный круг"), "vocabulary"),
        (("write", "FOLDER", "--text", "漢字"), "vocabulary"),
        (("write", "FOLDER", "--text", ""), "empty"),
        (("write", "FOLDER", "--text", " ".join(["a"] * 30)), "does not fit"),
        (("write", "FOLDER"), "to remember"),
        (("write", "FOLDER", "--image", "x.png", "--caption", "a", "a"), "2 captions"),
        (("read", "FOLDER"), "ask by"),
        (("forget", "FOLDER"), "what to forget"),
        (("forget", "FOLDER", "7"), "no item 7"),
        (("forget", "FOLDER", "--source", "nowhere"), "nothing came from"),
        (("write", "FOLDER", "--data", "pydoc"), "no images with captions"),
        (("remember", "FOLDER"), "unknown action"),
    ],
)
def test_bad_requests_change_nothing(words, says, folder, capsys):
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    words = [str(folder) if word == "FOLDER" else word for word in words]
    code, out, error = memory(capsys, *words)
    assert (code, out) == (USAGE, "")
    assert says in error
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_what_is_no_image_is_refused(folder, tmp_path, capsys):
    (tmp_path / "x.png").write_text("no image")
    for action, name in (("write", "x.png"), ("read", "x.png"), ("read", "none.png")):
        code, _, error = memory(capsys, action, folder, "--image", tmp_path / name)
        assert code == CORRUPT
        assert name in error


def test_models_without_a_memory_and_other_formats(model_directory, folder, tmp_path, capsys):
    code, _, error = memory(capsys, "write", model_directory, "--text", "a")
    assert code == USAGE
    assert "a charlm has no memory" in error
    bridge.convert(folder, tmp_path / "tree", to="orbax")
    code, _, error = memory(capsys, "list", tmp_path / "tree")
    assert code == USAGE
    assert "jaxmodels convert" in error


def test_a_damaged_record_is_found(folder, capsys):
    memory(capsys, "write", folder, "--text", TEXTS[1])
    flip(folder / "memory.json", 0.5)
    code, _, error = memory(capsys, "list", folder)
    assert code == CORRUPT
    assert "memory.json" in error


def test_a_memory_that_is_not_the_records_is_not_written_to(folder, tmp_path, capsys):
    memory(capsys, "write", folder, "--text", TEXTS[1])
    model = bridge.load(folder)
    model.memory.keys[...] = model.memory.keys[...] + 0.1  # trained on
    bridge.save(model, tmp_path / "trained")
    code, _, error = memory(capsys, "write", tmp_path / "trained", "--text", TEXTS[2])
    assert code == CORRUPT
    assert "forget PATH --all" in error
    assert memory(capsys, "forget", tmp_path / "trained", "--all")[0] == 0
    assert memory(capsys, "write", tmp_path / "trained", "--text", TEXTS[2])[0] == 0
