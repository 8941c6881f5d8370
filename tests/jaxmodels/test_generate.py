"""Which program decodes; what it writes is in tests/test_contract.py."""

import jax.numpy as jnp
import pytest

from jaxmodels.runtime import decoding


@pytest.mark.parametrize(
    ("rows", "kind", "uncut"),
    [
        (1, "float32", False),
        (8, "float32", True),
        (31, "float32", True),
        (32, "float32", False),
        (8, "bfloat16", False),
        (8, "uint8", False),
    ],
)
def test_products_of_some_rows_of_float32_are_not_cut(rows, kind, uncut):
    leaves = {"a": jnp.zeros(1), "b": jnp.zeros(1, kind)}
    found = decoding.decoder(leaves, {}, rows)
    assert found is (decoding._decode_uncut if uncut else decoding._decode)


def test_an_xla_without_the_option_decodes_as_usual(monkeypatch):
    monkeypatch.setattr(decoding, "_OPTIONS", {"xla_cpu_no_such_option": "1"})
    decoding._has_option.cache_clear()
    try:
        assert decoding.decoder({"a": jnp.zeros(1)}, {}, 8) is decoding._decode
    finally:
        monkeypatch.undo()
        decoding._has_option.cache_clear()
