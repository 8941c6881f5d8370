"""torch's zip files, read without torch and without running what is inside."""

import io
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.tensors import Tensor
from bridge.core.twins import to_torch
from bridge.formats import torch_files
from bridge.legacy.torch_file import read_torch
from bridge.legacy.unpickle import MAX_STEPS
from jaxmodels.errors import CORRUPT, UNSAFE, Problem

DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()


def refused(path, exit_code, **options):
    with pytest.raises(Problem) as caught:
        read_torch(path, **options)
    assert caught.value.exit_code == exit_code
    return f"{caught.value.what}: {caught.value.why}"


def zip_with(path, pickled, storages=()):
    """A torch file with a pickle of our own making."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, data in storages:
            archive.writestr(f"x/data/{key}", data)
    return path


def plain(value):
    """Tensors replaced by torch's, for comparison."""
    if isinstance(value, Tensor):
        return to_torch(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saved_is_read(tmp_path, protocol):
    values = torch.randn(4, 6)
    saved = {
        "dtypes": {name: (values * 9).to(getattr(torch, name)) for name in DTYPES},
        "views": [values.T, values[1:3, ::2], values[2], torch.zeros(0, 3), torch.tensor(2.5)],
        "parameter": torch.nn.Parameter(values),
        "state": torch.nn.Linear(2, 3).state_dict(),
        "plain": {"a": (1, -2, 2**40, 300, 1.5, True, None), 7: ["text", "ä🎉", [], {}]},
        "ordered": OrderedDict(b=1, a=2),
        "size": values.shape,
    }
    path = tmp_path / "any name"
    torch.save(saved, path, pickle_protocol=protocol)
    assert torch_files.is_file(path)
    found, expected = plain(read_torch(path)), saved
    assert list(found) == list(expected)
    for name, tensor in saved["dtypes"].items():
        assert found["dtypes"][name].dtype == tensor.dtype
        assert torch.equal(found["dtypes"][name], tensor)
    for ours, theirs in zip(found["views"], expected["views"], strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    assert torch.equal(found["parameter"], values)
    assert {k: v.tolist() for k, v in found["state"].items()} == {
        k: v.tolist() for k, v in expected["state"].items()
    }
    assert (found["plain"], found["ordered"]) == (expected["plain"], dict(expected["ordered"]))
    assert found["size"] == (4, 6)


class Evil:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        import os
        import subprocess

        return {"system": (os.system, ("touch HERE",)), "run": (subprocess.run, (["x"],))}[
            self.name
        ]


@pytest.mark.parametrize(("name", "said"), [("system", "posix.system"), ("run", ".run")])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_named(tmp_path, monkeypatch, name, said, protocol):
    monkeypatch.chdir(tmp_path)
    path = zip_with(tmp_path / "evil.pt", pickle.dumps({"model": Evil(name)}, protocol))
    assert said in refused(path, UNSAFE)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "torch load", "torch.hub load", "os path.join"]
)
def test_every_other_name_is_refused(tmp_path, name):
    module, attribute = name.split()
    pickled = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"."
    assert f"{module}.{attribute}" in refused(zip_with(tmp_path / "x", pickled), UNSAFE)


def test_a_flipped_bit_is_found_when_the_tensor_is_read(tmp_path):
    path = tmp_path / "x.pt"
    values = torch.arange(1000.0)
    torch.save({"a": values}, path)
    data = bytearray(path.read_bytes())
    start = data.index(values[:8].numpy().tobytes())
    data[start + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(Problem) as caught:
        read_torch(path)["a"].read()
    assert caught.value.exit_code == CORRUPT
    assert "data/0" in caught.value.what


def test_a_cut_file(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, CORRUPT)


def tensor_pickle(size, offset, shape, stride):
    """The pickle of one tensor over storage 0 of `size` float32 numbers."""
    out = io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if value is storage else None

    storage = torch.UntypedStorage(0)

    class Fake:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (storage, offset, shape, stride, False, OrderedDict())

    Pickler(out, 2).dump(Fake())
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "offset", "shape", "stride"),
    [
        (4, 0, (5,), (1,)),
        (4, 3, (2,), (1,)),
        (4, 0, (2, 2), (3, 1)),
        (4, -1, (2,), (1,)),
        (4, 0, (2,), (-1,)),
        (4, 0, (2**50,), (0,)),
        (4, 0, (2,), (1, 1)),
        (2**40, 0, (2,), (1,)),
        (4, 0, (True,), (1,)),
    ],
)
def test_tensors_that_reach_beyond_their_storage(tmp_path, size, offset, shape, stride):
    pickled = tensor_pickle(size, offset, shape, stride)
    refused(zip_with(tmp_path / "x", pickled, [("0", bytes(16))]), CORRUPT)


def test_the_made_up_tensor_is_sound_otherwise(tmp_path):
    numbers = np.arange(4, dtype="<f4")
    pickled = tensor_pickle(4, 1, (3,), (1,))
    tensor = read_torch(zip_with(tmp_path / "x", pickled, [("0", numbers.tobytes())]))
    assert tensor.read().tolist() == [1, 2, 3]


def test_compressed_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps("a" * 10_000))
    assert "compressed" in refused(tmp_path / "x", CORRUPT)


def test_a_pickle_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge.legacy.unpickle.MAX_STEPS", 1000)
    assert MAX_STEPS > 1000
    refused(zip_with(tmp_path / "x", b"\x80\x02" + b"N" * 2000 + b"."), CORRUPT)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory, data):
    path = zip_with(tmp_path_factory.mktemp("x") / "x", b"\x80\x02" + data)
    with suppress(Problem):
        read_torch(path)
