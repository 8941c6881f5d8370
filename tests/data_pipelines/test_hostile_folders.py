"""Other people's folders and files: captions, galleries, token folders, images."""

import json
import os
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines import images, limits, token_files
from data_pipelines.captions.examples import open_examples
from data_pipelines.captions.prepared import read_captions_manifest, read_rows
from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.images import decode_image, read_image
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import prepare, read_manifest
from data_pipelines.tokenizers import load_tokenizer
from tests.data_pipelines.captioned_on_disk import picture
from tests.data_pipelines.test_captions_folder import (
    opened,
    prepared_captions,
    write_csv,
    write_json,
)

DEEP = "[" * 100_000
LONG = "9" * 5000


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(picture(20 * i))
    return folder


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("name", ["../secret.png", "x/../../secret.png", "ABSOLUTE"])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder, kind, name):
    secret = folder.parent / "secret.png"
    secret.write_bytes(picture(1))
    name = str(secret) if name == "ABSOLUTE" else name
    if kind == "json":
        write_json(folder, [(1, "a.png"), (2, name)], [(1, "one"), (2, "two")])
    else:
        write_csv(folder, [("a.png", "one"), (name, "two")])
    with pytest.raises(DataProblem, match="leads out of the folder") as caught:
        opened(folder)
    assert caught.value.exit_code == 4
    assert repr(name) in caught.value.where


def test_half_a_pair_and_a_null_in_captions(folder):
    images = [(1, "a.png"), (2, "b.png"), (3, "\ud800.png")]
    write_json(folder, images, [(1, "a\ud800b"), (1, None), (2, "two")])
    data = opened(folder)
    assert prepared_captions(folder) == {"a.png": ("a\ufffdb",), "b.png": ("two",)}
    notes = " ".join(data.notes)
    assert "1 captions that say nothing are left out: a.png" in notes
    assert "1 images that are not there are left out: \ufffd.png" in notes
    notes.encode()


@pytest.mark.parametrize(
    "content", [DEEP, f'{{"images": {LONG}}}', f'{{"images": [{{"id": {LONG}}}]}}']
)
def test_captions_that_python_cannot_read(folder, content):
    (folder / "captions.json").write_text(content)
    with pytest.raises(DataProblem, match="captions cannot be read") as caught:
        opened(folder)
    assert caught.value.where == str(folder / "captions.json")


def test_captions_of_a_terabyte_are_refused_at_once(folder):
    sparse(folder / "captions.json", 1 << 40)
    with pytest.raises(DataProblem, match="captions cannot be read") as caught:
        opened(folder)
    assert f"{limits.MAX_CAPTIONS:,}" in caught.value.why


def test_capitals_and_a_number_sign(folder):
    folder = folder.rename(folder.parent / "c#")
    write_csv(folder, [("a.png", "one")], "Captions.CSV")
    assert [e.name for e in open_examples(f"images:{folder}", folder).train] == ["a.png"]
    write_json(folder, [(1, "b.png")], [(1, "two")], "other#.JSON")
    found = open_examples(f"images:{folder}#other#.JSON", folder)
    assert [e.name for e in found.train] == ["b.png"]


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1))
    write_csv(folder, [("a.png", "one"), ("gone.png", "two")])
    opened(folder)
    return folder.parent / "data"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=3), children, max_size=2)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data(), value=JSON)
def test_any_manifest_of_a_prepared_folder_is_opened_or_refused(
    prepared_folder, tmp_path, data, value
):
    manifest = json.loads((prepared_folder / "manifest.json").read_text())
    name = data.draw(st.sampled_from(sorted(manifest)))
    if isinstance(manifest[name], dict) and data.draw(st.booleans()):
        manifest[name][data.draw(st.sampled_from(sorted(manifest[name])))] = value
    else:
        manifest[name] = value
    for file in ("captions.jsonl", "images.bin"):
        if not (tmp_path / file).exists():
            os.link(prepared_folder / file, tmp_path / file)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    try:
        found = open_data(f"bin:{tmp_path}", folder="", context=4, batch=1, valid_fraction=0.0)
        assert all(isinstance(note, str) for note in found.notes)
    except DataProblem as problem:
        str(problem).encode()


@pytest.mark.parametrize("line", [DEEP, f'{{"index": {LONG}}}', "{}", '{"split": "x"}', "[1]"])
def test_a_line_of_a_prepared_folder_that_is_no_row_is_named(prepared_folder, tmp_path, line):
    import hashlib
    import shutil

    shutil.copytree(prepared_folder, tmp_path / "data")
    path = tmp_path / "data" / "captions.jsonl"
    path.write_text(path.read_text() + line + "\n")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    manifest["sha256"]["captions.jsonl"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataProblem, match="not an intact folder") as caught:
        read_rows(tmp_path / "data", manifest)
    assert "line 2" in caught.value.why


@pytest.mark.parametrize("name", ["manifest.json", "captions.jsonl", "images.bin"])
@pytest.mark.parametrize("what", ["terabyte", "pipe"])
def test_a_prepared_folders_files_of_other_sizes_and_kinds(prepared_folder, tmp_path, name, what):
    for file in ("manifest.json", "captions.jsonl", "images.bin"):
        if file != name:
            os.link(prepared_folder / file, tmp_path / file)
    if what == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        sparse(tmp_path / name, 1 << 40)
    with pytest.raises(DataProblem, match="not an intact folder"):
        read_rows(tmp_path, read_captions_manifest(tmp_path))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "a.txt").write_text("some text " * 20)
    prepare(f"text:{folder}/a.txt", folder / "data")
    return folder / "data"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data(), value=JSON)
def test_any_manifest_of_tokens_is_opened_or_refused(tokens, tmp_path, data, value):
    manifest = json.loads((tokens / "manifest.json").read_text())
    name = data.draw(st.sampled_from(sorted(manifest)))
    if isinstance(manifest[name], dict) and data.draw(st.booleans()):
        manifest[name][data.draw(st.sampled_from(sorted(manifest[name])))] = value
    else:
        manifest[name] = value
    for file in ("tokens.bin", "characters.json"):
        if not (tmp_path / file).exists():
            os.link(tokens / file, tmp_path / file)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    try:
        assert isinstance(open_data(f"bin:{tmp_path}", folder="", context=4, batch=1).notes, list)
    except DataProblem as problem:
        str(problem).encode()


@pytest.mark.parametrize("content", [DEEP, f'{{"tokens": {LONG}}}', None])
def test_a_manifest_that_cannot_be_read(tokens, tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content) if content else sparse(path, 1 << 40)
    with pytest.raises(DataProblem, match="not an intact folder of prepared tokens"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [DEEP, f"[{LONG}]", None])
def test_a_vocabulary_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "characters.json"
    path.write_text(content) if content else sparse(path, 1 << 40)
    for read in (CharTokenizer.load, load_tokenizer):
        with pytest.raises(DataProblem) as caught:
            read(path)
        assert caught.value.where == str(path)
        assert len(str(caught.value)) < 1000


def test_tokens_of_a_terabyte_are_opened_at_once(tmp_path):
    path = sparse(tmp_path / "tokens.bin", 1 << 40)
    with path.open("r+b") as file:
        file.write(np.array([5], "<u2").tobytes())
    began = time.monotonic()
    data = open_data(f"bin:{path}", folder="", context=8, batch=2)
    assert time.monotonic() - began < 20  # samples of 64 MB; the whole takes half an hour
    assert len(data.tokens) == 1 << 39
    assert next(data.train())["tokens"].shape == (2, 9)
    assert "not all read before training" in " ".join(data.notes)


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(token_files, "MAX_FULL_SCAN", 1 << 10)
    monkeypatch.setattr(token_files, "_SAMPLES", 4)
    monkeypatch.setattr(token_files, "_SAMPLE", 10)


def test_a_token_that_no_sample_showed_is_refused_in_its_batch(tmp_path, small_limit):
    path, tokens = tmp_path / "tokens.bin", np.zeros(4000, "<u2")
    tokens[100] = 999
    path.write_bytes(tokens.tobytes())
    data = open_data(f"bin:{path}", folder="", context=8, batch=64)
    with pytest.raises(DataProblem, match="token 999 does not fit a vocabulary of 1") as caught:
        for _, _ in zip(range(100), batches := data.train(), strict=False):
            pass
    assert caught.value.exit_code == 5
    batches.close()


def test_what_a_sample_tells_apart_and_what_an_earlier_version_stored(tmp_path, monkeypatch):
    path, tokens = tmp_path / "tokens.bin", np.arange(4000, dtype="<u2")
    path.write_bytes(tokens.tobytes())
    sizes = {"folder": "", "context": 8, "batch": 2}
    before = open_data(f"bin:{path}", **sizes).identity
    monkeypatch.setattr(token_files, "MAX_FULL_SCAN", 1 << 10)
    data = open_data(f"bin:{path}", **sizes)
    assert "tokens_sha256" in before
    assert "tokens_sha256" not in data.identity
    assert data.identity_as(before) == before
    assert data.identity_as(data.identity) == data.identity
    tokens[-1] = 7
    path.write_bytes(tokens.tobytes())
    assert open_data(f"bin:{path}", **sizes).identity != data.identity


def test_a_large_folder_is_believed_and_inspected_whole(tokens, tmp_path, monkeypatch):
    import shutil

    from data_pipelines.reports import of_tokens

    shutil.copytree(tokens, tmp_path / "data")
    changed = tmp_path / "data" / "tokens.bin"
    changed.write_bytes(b"\x03" + changed.read_bytes()[1:])
    monkeypatch.setattr(token_files, "MAX_FULL_SCAN", 10)
    spec = f"bin:{tmp_path}/data"
    assert "data inspect" in open_data(spec, folder="", context=4, batch=2).notes[0]
    with pytest.raises(DataProblem, match="not an intact"):
        of_tokens(spec)


def png(width, height, data=b""):
    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_an_image_of_too_many_bytes_or_pixels(tmp_path, monkeypatch):
    with pytest.raises(DataProblem, match="too large"):
        decode_image(png(60_000, 60_000), "bomb")
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    os.truncate(path, 1 << 40)
    with pytest.raises(DataProblem, match="too large") as caught:
        read_image(path)
    assert f"{limits.MAX_IMAGE:,} are the most" in caught.value.why
    monkeypatch.setattr(images, "MAX_IMAGE", 10)
    with pytest.raises(DataProblem, match="too large"):
        decode_image(picture(1), "bytes")
