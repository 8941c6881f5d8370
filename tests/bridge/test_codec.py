"""Messages from the process that reads legacy files: exact values, and nothing invalid."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.tensors import Tensor
from bridge.legacy.values import Named, Record
from bridge.sandbox.codec import Garbled, decode, encode


def crossed(value):
    """The value as it arrives."""
    encoded, tensors = encode(value)
    return decode(json.loads(json.dumps(encoded)), lambda number, *_: tensors[number].read(), 1000)


def test_values_cross_as_they_are():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    tensor = Tensor("a", (2, 3), array.dtype, lambda: array)
    record = Record("optax.S", (1, [tensor]))
    record["more"] = None
    same = [1.5, -(2**70), "ä🎉\ud800", True, float("inf")]
    value = {
        "x": tensor,
        7: (same, same),
        (1, "b", None): record,
        "np": np.int32(4),
        "n": Named("q"),
    }
    value["self"] = value
    found = crossed(value)
    assert found["self"] is found
    assert found[7] == [same, same]
    assert found[7][0] is found[7][1]
    back = found[1, "b", None]
    assert (back.name, dict(back)) == ("optax.S", {"more": None})
    assert back.values_in_order[1][0] is found["x"]
    assert (found["np"], found["n"]) == (4, Named("q"))
    assert (found["x"].name, found["x"].shape, found["x"].dtype) == ("a", (2, 3), array.dtype)
    assert found["x"].read() is array
    assert crossed(b"bytes").name == "b'bytes'"


@pytest.mark.slow
def test_what_is_built_to_grow_does_not(tmp_path):
    laughs, deep = (), []
    for _ in range(60):
        laughs = (laughs, laughs)
    for _ in range(100_000):
        deep = [deep]
    assert len(encode(laughs)[0]["table"]) == 61
    assert len(encode(deep)[0]["table"]) == 100_001
    assert isinstance(crossed([laughs, deep]), list)


@pytest.mark.parametrize(
    "encoded",
    [
        None,
        [],
        {"top": [0]},
        {"top": [0], "table": []},
        {"top": [-1], "table": [["list", []]]},
        {"top": [True], "table": [["list", []], ["list", []]]},
        {"top": [0, 0], "table": [["list", []]]},
        {"top": {"a": 1}, "table": []},
        {"top": 1, "table": [["tuple", []]]},
        {"top": 1, "table": [["list", [[7]]]]},
        {"top": 1, "table": [["dict", [[1, 2, 3]]]]},
        {"top": 1, "table": [["dict", [[[0], 1]]]]},
        {"top": 1, "table": [["dict", [[[1], 1]]], ["list", [[0]]]]},
        {"top": 1, "table": [["dict", [[[1], 1]]], ["tensor", "a", "F32", [1]]]},
        {"top": 1, "table": [["record", [], 3, []]]},
        {"top": 1, "table": [["named", ["os.system"]]]},
        {"top": 1, "table": [["tensor", "a", "F32", [251]]]},
        {"top": 1, "table": [["tensor", "a", "F32", [-1]]]},
        {"top": 1, "table": [["tensor", "a", "F32", [1.0]]]},
        {"top": 1, "table": [["tensor", "a", "F32", [1] * 33]]},
        {"top": 1, "table": [["tensor", "a", "O", [1]]]},
        {"top": 1, "table": [["tensor", 3, "F32", [1]]]},
    ],
)
def test_what_does_not_fit_is_not_believed(encoded):
    with pytest.raises(Garbled):
        decode(encoded, lambda *_: np.zeros(1), 1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(
        ["list", "dict", "record", "named", "tensor", "F32", "a"]
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=30,
)  # fmt: skip


@given(JSON, st.lists(JSON, max_size=6))
def test_nothing_that_arrives_crashes(top, table):
    with suppress(Garbled):
        decode({"top": top, "table": table}, lambda *_: np.zeros(1), 1000)
