import json
import os
import stat
import struct
import tempfile
from pathlib import Path

import ml_dtypes  # noqa: F401 (lets safetensors.numpy read bfloat16)
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bridge.core.tensors import DTYPES, Tensor
from bridge.storage.safetensors_reader import read_file, read_sharded
from bridge.storage.safetensors_writer import (
    INDEX,
    parse_size,
    plan_shards,
    write_file,
    write_index,
)
from jaxmodels.errors import CORRUPT, USAGE, Problem
from jaxmodels.reading import digest

LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1] if x.ndim else x,
    "strided": lambda x: x[..., ::2] if x.ndim else x,
    "broadcast": lambda x: np.broadcast_to(x, (2, *x.shape)),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")).view(x.dtype.newbyteorder(">")),
}


def write_safetensors(folder, shards):
    digests = {}
    for name, tensors in shards.items():
        digests |= write_file(folder / name, tensors)[0]
    write_index(folder, shards)
    return digests


def lazy(name, array):
    dtype = array.dtype.newbyteorder("<")
    return Tensor(name, array.shape, dtype, lambda: array.astype(dtype, copy=False))


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    plain = (raw % 2 if dtype == np.bool_ else raw).view(dtype).reshape(shape)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](plain)


@settings(deadline=None, max_examples=60)
@given(st.lists(arrays(), min_size=1, max_size=6), st.integers(1, 400))
def test_what_is_written_is_read_back_by_the_library_and_by_us(values, max_shard):
    named = {f"a.{i}": array for i, array in enumerate(values)}
    tensors = [lazy(name, array) for name, array in named.items()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = plan_shards(tensors, max_shard)
        digests = write_safetensors(folder, shards)
        library = {k: v for name in shards for k, v in load_file(folder / name).items()}
        first = folder / next(iter(shards))
        ours = read_sharded(folder / INDEX) if len(shards) > 1 else read_file(first)
        assert library.keys() == ours.keys() == named.keys()
        for tensor in tensors:
            want = tensor.read()
            assert same(library[tensor.name], want)
            assert same(ours[tensor.name].read(), want)
            assert digests[tensor.name]["xxh3_128"] == xxhash.xxh3_128(want.tobytes()).hexdigest()
        for held in shards.values():
            assert len(held) == 1 or sum(tensor.nbytes for tensor in held) <= max_shard


def test_shards_have_the_standard_names_and_an_index(tmp_path):
    tensors = [lazy(f"t{i}", np.full((10,), i, np.float32)) for i in range(5)]
    shards = plan_shards(tensors, 80)
    write_safetensors(tmp_path, shards)
    assert [*shards] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    mask = os.umask(0)
    os.umask(mask)
    mode = stat.S_IMODE((tmp_path / next(iter(shards))).stat().st_mode)
    assert mode == 0o666 & ~mask


def test_offsets_are_aligned(tmp_path):
    tensors = [lazy("a", np.ones(3, np.uint8)), lazy("b", np.ones(3, np.float64))]
    write_safetensors(tmp_path, {"f": tensors})
    data = (tmp_path / "f").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert header["__metadata__"] == {"format": "pt"}
    assert header["b"]["data_offsets"] == [0, 24]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("300MB", 3 * 10**8), ("1.5kb", 1500), (77, 77)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "0", "0.1"])
def test_no_sizes(text):
    with pytest.raises(Problem) as caught:
        parse_size(text)
    assert caught.value.exit_code == USAGE


@pytest.fixture
def sound(tmp_path):
    rng = np.random.default_rng(0)
    tensors = [lazy(f"t{i}", rng.random((6, 5)).astype(np.float32)) for i in range(4)]
    write_safetensors(tmp_path, {"sound": tensors})
    return tmp_path / "sound"


def read_all(path):
    return {name: tensor.read() for name, tensor in read_file(path).items()}


def refused(path):
    with pytest.raises(Problem) as caught:
        read_all(path)
    assert caught.value.exit_code == CORRUPT
    return caught.value


def test_truncation_is_never_a_success(sound):
    data = sound.read_bytes()
    for percent in range(0, 100, 3):
        sound.write_bytes(data[: len(data) * percent // 100])
        problem = refused(sound)
        assert "truncated" in problem.what
        assert problem.where == str(sound)
        assert f"found {len(data) * percent // 100:,}" in problem.why


def test_a_file_that_shrinks_after_it_was_opened(sound):
    tensors = read_file(sound)
    sound.write_bytes(sound.read_bytes()[:-50])
    with pytest.raises(Problem) as caught:
        [tensor.read() for tensor in tensors.values()]
    assert caught.value.exit_code == CORRUPT


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


LIES = {
    "array": [],
    "string": "x",
    "metadata": {"__metadata__": {"a": 1}, "t": entry()},
    "no entry": {"t": 3},
    "extra key": {"t": entry(more=1)},
    "unknown dtype": {"t": entry("F8_E4M3")},
    "no dtype": {"t": entry(None)},
    "list dtype": {"t": entry(["F32"])},
    "negative dimension": {"t": entry(shape=(-2, -3))},
    "float dimension": {"t": entry(shape=(2.0, 3))},
    "boolean dimension": {"t": entry("U8", (True,), (0, 1))},
    "many dimensions": {"t": entry("U8", (1,) * 10_000, (0, 1))},
    "overflow": {"t": entry(shape=(2**32, 2**32, 2**62))},
    "huge and empty": {"t": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))},
    "shape disagrees": {"t": entry(shape=(2, 4))},
    "backwards": {"t": entry(offsets=(24, 0))},
    "hole": {"t": entry("F32", (2,), (16, 24))},
    "overlap": {"t": entry(), "u": entry("F32", (2,), (16, 24))},
    "past the end": {"t": entry(shape=(2, 30), offsets=(0, 240))},
    "trailing bytes": {"t": entry("F32", (2,), (0, 8))},
    "three offsets": {"t": entry(offsets=(0, 12, 24))},
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(tmp_path, lie):
    text = json.dumps(LIES[lie]).encode()
    path = tmp_path / "lie"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    refused(path)


@pytest.mark.parametrize(
    "text",
    [b"{", b"\xff\xfe{}", b'{"t":1,"t":1}', b"[" * 100_000, b'{"t":' + b"9" * 5000 + b"}"],
)
def test_headers_that_are_no_json(tmp_path, text):
    path = tmp_path / "lie"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9])
def test_header_lengths_that_lie(tmp_path, length):
    path = tmp_path / "lie"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert "truncated" in refused(path).what


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "file")
        path.write_bytes(data)
        refused(path)


@pytest.fixture
def sharded(tmp_path):
    tensors = [lazy(f"t{i}", np.full((10,), i, np.float32)) for i in range(5)]
    write_safetensors(tmp_path, plan_shards(tensors, 80))
    return tmp_path / INDEX


def index_refused(index, change=None):
    if change:
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))
    with pytest.raises(Problem) as caught:
        read_sharded(index)
    assert caught.value.exit_code == CORRUPT
    return f"{caught.value.what} {caught.value.why}"


def test_a_missing_shard_is_named(sharded):
    (sharded.parent / "model-00002-of-00003.safetensors").unlink()
    told = index_refused(sharded)
    assert "incomplete download?" in told
    assert "model-00002-of-00003.safetensors" in told


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "a\\b", "a\0b"])
def test_shards_lie_beside_the_index(sharded, name):
    assert "elsewhere" in index_refused(sharded, lambda names: names.update(t0=name))


def test_index_and_shards_must_agree(sharded):
    other = "model-00003-of-00003.safetensors"
    told = index_refused(sharded, lambda names: names.update(t0=other))
    assert f"t0 is not in {other}" in told
    assert "t0 is in model-00001-of-00003.safetensors, stray" in told


def test_a_tensor_the_index_forgets_is_refused(sharded):
    assert "t1 is in" in index_refused(sharded, lambda names: names.pop("t1"))


def test_an_index_without_map(sharded):
    sharded.write_text('{"weight_map": [1]}')
    assert "weight_map" in index_refused(sharded)


def test_large_arrays_are_turned_round_in_pieces_and_tiles(tmp_path, monkeypatch):
    from bridge.core import tensors
    from bridge.storage import hashing

    monkeypatch.setattr(tensors, "PIECE", 5_000)
    monkeypatch.setattr(tensors, "TILE", (7, 3))
    monkeypatch.setattr(hashing, "CALL", 1_000)
    monkeypatch.setattr(hashing, "AHEAD", 2_000)
    array = np.random.default_rng(0).standard_normal((50, 31, 1)).astype(np.float32)
    for name, view in {
        "turned": array[..., 0].T,
        "part": array[3:, 2:, 0].T,
        "three": array.T,
        "backwards": array[::-1, :, 0].T,
    }.items():
        path = tmp_path / name
        told, sha256 = write_file(path, [lazy("x", view)])
        np.testing.assert_array_equal(load_file(path)["x"], view)
        assert told["x"]["xxh3_128"] == tensors.digest_of(np.ascontiguousarray(view))
        assert sha256 == digest(path)
