"""A format is one record; the registry and everything that converts follow from it."""

import json

import numpy as np
import pytest

import bridge
from bridge import formats
from bridge.core.tensors import Tensor
from bridge.formats.format import Format, Output
from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import USAGE, Problem
from tests.bridge.helpers import HEADS, SEED

FILE = "tensors.json"


def write(output: Output) -> None:
    held = {name: output.read(tensor).tolist() for name, tensor in output.tensors.items()}
    (output.folder / FILE).write_text(json.dumps(held))


def open_folder(folder) -> RawCheckpoint:
    tensors = {}
    for name, values in json.loads((folder / FILE).read_text()).items():
        array = np.asarray(values, np.float32)
        tensors[name] = Tensor(name, array.shape, array.dtype, lambda array=array: array)
    return RawCheckpoint(folder, "lists", tensors, arch="charlm", usual=dict(HEADS))


LISTS = Format(
    "lists",
    "a folder with numbers in JSON",
    is_folder=lambda folder: (folder / FILE).is_file(),
    open_folder=open_folder,
    write=write,
    arch="charlm",
    file=lambda origin: FILE,
    moments=None,
)


def test_a_new_format_takes_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, LISTS))
    out = tmp_path / "out"
    report = bridge.convert(SEED, out, to="lists", config=HEADS, verify="roundtrip")
    assert report.files == ["manifest.json", FILE]
    assert formats.kind(out) == bridge.inspect(out).format == "lists"
    assert bridge.diff(out, SEED, config=HEADS).same
    with pytest.raises(Problem, match="cannot be carried to lists") as caught:
        bridge.convert(out, tmp_path / "again", to="lists", optimizer=True, config=HEADS)
    assert caught.value.exit_code == USAGE


def test_every_record_can_do_what_it_says():
    for format in (*formats.FORMATS, *formats.targets().values()):
        assert (format.is_file is None) == (format.open_file is None), format.name
        assert (format.is_folder is None) == (format.open_folder is None), format.name
        assert not (format.pytorch and format.write), format.name
        reads = format.is_file or format.is_folder
        assert reads or format.is_target or format.interpret, format.name


def test_what_is_known_is_listed_from_the_records(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(Problem) as caught:
        formats.recognise(tmp_path / "notes")
    assert all(f.what in caught.value.fix for f in formats.FORMATS)
    assert "gpt2" in caught.value.fix
