"""A TFDS dataset with damaged or false metadata is refused, naming its folder."""

import shutil

import pytest

from data_pipelines import tfds
from data_pipelines.errors import DataProblem
from data_pipelines.pipelines import open_data
from tests.data_pipelines import tfds_on_disk


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds_on_disk.write(folder, [f"document {i}" for i in range(30)])
    return folder


@pytest.fixture
def version(sound, tmp_path, monkeypatch):
    """The folder of a copy, to be maltreated."""
    shutil.copytree(sound / "tiny_texts", tmp_path / "tiny_texts")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path / "tiny_texts" / "1.0.0"


def first_batch():
    return next(open_data("tfds:tiny_texts", folder="", context=4, batch=1).train())


def problem():
    with pytest.raises(DataProblem) as caught:
        first_batch()
    return caught.value


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "", "{}", "[1]"])
def test_metadata_that_cannot_be_read(version, name, content):
    (version / name).write_text(content)
    found = problem()
    assert str(version) in found.where
    assert found.exit_code in (2, 3)


@pytest.mark.parametrize("count", [31, 10**12])
def test_more_examples_than_there_are(version, count):
    file = version / "dataset_info.json"
    file.write_text(file.read_text().replace('"30"', f'"{count}"'))
    found = problem()
    assert "cannot be read" in found.what
    assert found.where == f"{version}, train, example {count - 1}"


def test_records_that_are_cut_off(version):
    (records,) = version.glob("*array_record*")
    records.write_bytes(records.read_bytes()[:100])
    assert str(version) in problem().where


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (b"ok", "ok"), (b"\xff", "\ufffd"), ("a\ud800", "a\ufffd")],
)
def test_any_value_is_text(value, text):
    assert tfds.text_of(value) == text
