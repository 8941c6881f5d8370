"""flax's msgpack trees, beside flax itself."""

from contextlib import suppress

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.tensors import DTYPES, Tensor
from bridge.legacy import msgpack_writer
from bridge.legacy.msgpack_reader import leaves, looks_like_tree, read_msgpack
from bridge.legacy.msgpack_writer import write_msgpack
from jaxmodels.errors import CORRUPT, Problem


def tree(seed=0):
    """Every dtype, shapes from () to three dimensions, nested."""
    rng = np.random.default_rng(seed)
    arrays = {
        code: (rng.standard_normal((3, 4, 5)) * 5).astype(dtype) for code, dtype in DTYPES.items()
    }
    return {
        "params": {
            "arrays": arrays,
            "small": {"none": np.zeros((0, 3), np.float32), "one": np.float32([1.5])},
            "scalar": np.asarray(7, np.int32),
        },
        "count": 3,
        "text": "x" * 300,
        "numbers": [1, -1, 127, 128, 255, 256, -129, 70_000, -70_000, 2**40, -(2**40), 0.5],
        "flags": {"yes": True, "no": False, "none": None},
    }


def as_tensors(value, name=""):
    if isinstance(value, dict):
        return {k: as_tensors(v, f"{name}.{k}" if name else k) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return Tensor(name, value.shape, value.dtype, lambda: value)
    return value


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
            np.testing.assert_array_equal(found[name].read(), value)
        else:
            assert found[name] == value, name


def read_all(path):
    return [x.read() for x in leaves(read_msgpack(path)).values() if isinstance(x, Tensor)]


def refused(path):
    with pytest.raises(Problem) as caught:
        read_all(path)
    assert caught.value.exit_code == CORRUPT
    return f"{caught.value.what}: {caught.value.why}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree"


def test_what_flax_wrote_is_read(path):
    path.write_bytes(serialization.msgpack_serialize(tree()))
    assert looks_like_tree(path)
    assert_same(leaves(read_msgpack(path)), leaves(tree()))


def test_bytes_are_those_of_flax(path):
    digests = write_msgpack(path, as_tensors(tree()))
    assert path.read_bytes() == serialization.msgpack_serialize(tree(), in_place=True)
    assert digests["params.arrays.F32"]["shape"] == [3, 4, 5]


def test_values_that_are_not_contiguous(path):
    array = np.arange(12.0, dtype=np.float32).reshape(3, 4).T
    write_msgpack(path, {"a": Tensor("a", array.shape, array.dtype, lambda: array)})
    assert path.read_bytes() == serialization.to_bytes({"a": array})


def test_scalars_and_complex_numbers(path):
    path.write_bytes(serialization.msgpack_serialize({"a": np.float32(1.5), "b": 1 + 2j}))
    assert read_msgpack(path) == {"a": 1.5, "b": 1 + 2j}


def test_large_arrays_come_in_pieces(path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    monkeypatch.setattr(msgpack_writer, "MAX_CHUNK", 100)
    arrays = {"big": np.arange(330, dtype=np.float32).reshape(11, 30), "small": np.ones(25, "f4")}
    write_msgpack(path, as_tensors(arrays))
    assert path.read_bytes() == serialization.to_bytes({**arrays})
    assert_same(leaves(read_msgpack(path)), arrays)


def test_optax_state(path):
    params = {"params": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}}
    path.write_bytes(serialization.to_bytes(optax.adamw(1e-3).init(params)))
    found = leaves(read_msgpack(path))
    assert found["0.count"].read() == 0
    assert found["0.mu.params.w"].shape == (2, 3)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.99])
def test_a_cut_file_says_so(path, part):
    data = serialization.msgpack_serialize(tree())
    path.write_bytes(data[: int(len(data) * part)])
    assert "truncated" in refused(path)


def test_data_after_the_end(path):
    path.write_bytes(serialization.msgpack_serialize({"a": 1}) + b"more")
    assert "after the tree" in refused(path)


def test_a_file_that_shrinks_meanwhile(path):
    path.write_bytes(serialization.msgpack_serialize({"a": np.ones(100)}))
    found = read_msgpack(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Problem, match="truncated"):
        found["a"].read()


def test_depth_is_limited(path):
    path.write_bytes(b"\x81\xa1a" * 100_000 + b"\xc0")
    assert "too deep" in refused(path)


@pytest.mark.parametrize(
    "lie",
    [
        (b"\x93\x02\xa7float32\xc4\x08", b"\x93\x03\xa7float32\xc4\x08"),
        (b"float32", b"object_"),
        (b"\x92\x02\x01", b"\x92\x02\xff"),
        (b"\xa7float32\xc4", b"\xa7float32\xd9"),
    ],
)
def test_arrays_that_lie(path, lie):
    data = serialization.msgpack_serialize({"a": np.ones((2, 1), np.float32)})
    path.write_bytes(data.replace(*lie))
    if path.read_bytes() != data:
        refused(path)


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "x"
    path.write_bytes(b"\x82\xa1a" + data)
    with suppress(Problem):
        read_all(path)
