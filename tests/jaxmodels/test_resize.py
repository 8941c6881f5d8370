import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from jaxmodels.layers.resize import bicubic

INTERPOLATIONS = ("scale_offset", "size", "antialias")


def torchs(grid: torch.Tensor, rows: int, columns: int, interpolation: str) -> np.ndarray:
    """PyTorch's, as DINOv2's code and transformers call it; [r, c] → [rows, columns]."""
    given = {"size": (rows, columns), "antialias": interpolation == "antialias"}
    if interpolation == "antialias" and columns == 1 < rows:
        # PyTorch 2.13 writes the first row of a single column into all others.
        return torchs(grid.T, columns, rows, interpolation).T
    if interpolation == "scale_offset":
        height, width = grid.shape
        given = {"scale_factor": ((rows + 0.1) / height, (columns + 0.1) / width)}
    return interpolate(grid[None, None], mode="bicubic", **given)[0, 0].numpy()


@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolation=st.sampled_from(INTERPOLATIONS),
    seed=st.integers(0, 100),
)
def test_the_matrices_are_pytorchs_interpolation(source, target, interpolation, seed):
    grid = torch.randn(source, generator=torch.Generator().manual_seed(seed))
    down, across = (bicubic(s, t, interpolation) for s, t in zip(source, target, strict=True))
    expected = torchs(grid, *target, interpolation)
    assert expected.shape == target
    assert down.dtype == np.float64
    assert np.abs(down @ grid.numpy() @ across.T - expected).max() <= 5e-5


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_constant_stays_one(interpolation):
    for source, target in ((37, 16), (16, 37), (5, 5), (1, 3)):
        np.testing.assert_allclose(bicubic(source, target, interpolation).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["size", "antialias"])
def test_the_same_size_changes_nothing(interpolation):
    np.testing.assert_allclose(bicubic(9, 9, interpolation), np.eye(9), atol=1e-7)


def test_jax_image_has_another_bicubic():
    """Which is why there is this module; when it fails, the module may go."""
    import jax

    grid = np.random.default_rng(0).normal(size=(37, 37)).astype(np.float32)
    theirs = jax.image.resize(grid, (16, 16), "cubic", antialias=False)
    ours = bicubic(37, 16, "size") @ grid @ bicubic(37, 16, "size").T
    assert np.abs(theirs - ours).max() > 0.1
