"""Rounded values are as close to the source as their dtype allows."""

import ml_dtypes
import numpy as np
import pytest

import bridge
from bridge.checks import verification
from bridge.checks.rounding import misrounded
from bridge.conversion import plan
from bridge.core.tensors import cast
from bridge.formats import gguf_writer
from bridge.storage.gguf_reader import dequantised
from jaxmodels.errors import UNVERIFIED, Problem
from tests.bridge.helpers import write_run

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


def numbers(dtype, size=4096):
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.integers(-9, 4, size)
    return (rng.standard_normal(size) * sizes).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nearest_number_passes_and_its_neighbours_do_not(dtype):
    exact = numbers(np.float64 if dtype is np.float32 else np.float32)
    kept = exact.astype(dtype)
    assert not misrounded(exact, kept)
    bits = np.uint32 if dtype is np.float32 else np.uint16
    for step in (1, -1):
        other = kept.copy()
        large = int(np.abs(kept).argmax())
        other.view(bits)[large] = int(kept.view(bits)[large]) + step
        assert misrounded(exact, other)
    assert misrounded(exact, np.where(np.arange(4096) == 7, np.nan, kept).astype(dtype))


def test_blocks():
    exact = numbers(np.float32).reshape(4, 1024)
    kept = dequantised(gguf_writer._blocks(exact)).reshape(exact.shape)
    assert not misrounded(exact, kept, blocks=True)
    row, at = np.unravel_index(np.abs(exact).argmax(), exact.shape)
    other = kept.copy()
    other[row, at] *= 1 - 1 / 127
    assert misrounded(exact, other, blocks=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run", {1: 2.0}, spec="wikigpt:tiny")


def test_blocks_are_verified_against_their_source(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "compare_outputs", lambda *_: _Same)
    bridge.convert(trained, tmp_path / "out", to="gguf", dtype="q8_0", verify="roundtrip")
    report = bridge.verify(tmp_path / "out", trained)
    assert report.ok, report.problems
    assert report.tensors_equal < report.tensors_compared
    # A source with another number is none.
    other = write_run(tmp_path / "other", {2: 2.0}, spec="wikigpt:tiny")
    problems = bridge.verify(tmp_path / "out", other).problems
    assert any("blocks/0/attn/qkv/kernel differs by" in line for line in problems)


class _Same:
    random, text, argmax, gradient = 0.0, None, 1.0, None

    @staticmethod
    def complaints(*_):
        return []


def test_a_mistake_in_rounding_is_found(trained, tmp_path, monkeypatch):
    """Which both sides of the outputs' comparison would share."""

    def truncated(tensor, dtype, told=lambda *_: None):
        made = cast(tensor, dtype, told)
        if made is tensor:
            return tensor

        def read():
            made.read()  # tells the error
            bits = np.asarray(tensor.read(), np.float32).view(np.uint32) >> 16
            return bits.astype(np.uint16).view(dtype)

        return type(made)(made.name, made.shape, made.dtype, read)

    monkeypatch.setattr(plan, "cast", truncated)
    with pytest.raises(Problem, match="does not read back as it was written") as caught:
        bridge.convert(trained, tmp_path / "out", dtype="bfloat16", verify="roundtrip")
    assert caught.value.exit_code == UNVERIFIED
    assert "further from its source than rounding takes it" in caught.value.why
