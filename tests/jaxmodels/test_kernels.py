"""Kernels by platform compute what the plain form computes, and are what is lowered."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels
from jaxmodels.layers import kernels
from jaxmodels.layers.attention import attention, self_attention
from jaxmodels.layers.kernels import splash
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import init, train_step
from tests.contract import our_writers

KINDS = pytest.mark.parametrize("kind", ["causal", "full", "segments"])


def inputs(t, width, dtype=jnp.float32, batch=2, heads=2):
    rng = np.random.default_rng(0)
    shape = (batch, t, heads, width)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in "qkvw")


def documents(t, batch=2):
    """Segments that end at other places than tiles do."""
    return jnp.stack([jnp.arange(t) // (t // 3 + row) for row in range(batch)]).astype(jnp.int32)


def plain(q, k, v, segments, causal):
    t = q.shape[1]
    mask = jnp.tril(jnp.ones((t, t), bool)) if causal else jnp.ones((t, t), bool)
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None])
    return attention(q, k, v, mask)


def both(form, other, q, k, v, w):
    """The outputs and gradients of two forms."""

    def results(f):
        def value(*a):
            return (f(*a).astype(jnp.float32) * w).sum()

        return jax.jit(lambda *a: (f(*a), *jax.grad(value, (0, 1, 2))(*a)))(q, k, v)

    return zip(results(form), results(other), strict=True)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize(("t", "width"), [(128, 8), (200, 78)])
def test_splash_is_the_plain_form(kind, t, width):
    segments = documents(t) if kind == "segments" else None

    def form(q, k, v):
        return splash(q, k, v, segments, causal=kind != "full", interpret=True)

    def other(q, k, v):
        return plain(q, k, v, segments, kind != "full")

    for one, two in both(form, other, *inputs(t, width)):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_splash_in_bfloat16_is_near_float32():
    arrays = inputs(128, 64, jnp.bfloat16)
    exact = plain(*(a.astype(jnp.float32) for a in arrays[:3]), None, True)
    found = splash(*arrays[:3], None, causal=True, interpret=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=3e-2)


@KINDS
@pytest.mark.parametrize("t", [5, 128, 300])
def test_without_a_kernel_it_is_the_plain_form(kind, t):
    segments = documents(t) if kind == "segments" else None

    def form(q, k, v):
        return self_attention(q, k, v, causal=kind != "full", segments=segments)

    def other(q, k, v):
        return plain(q, k, v, segments, kind != "full")

    for one, two in both(form, other, *inputs(t, 8)):
        np.testing.assert_allclose(one, two, atol=2e-5)


def gradient(q, k, v, **options):
    return jax.grad(lambda *a: self_attention(*a, **options).astype(jnp.float32).sum(), (0, 1, 2))(
        q, k, v
    )


def test_a_cpu_program_has_no_branch():
    text = jax.jit(gradient).lower(*inputs(128, 8)[:3]).compile().as_text()
    assert "conditional" not in text
    assert "custom-call" not in text


@KINDS
def test_lowered_for_a_tpu_it_is_splash(kind):
    segments = documents(128) if kind == "segments" else None
    options = {"causal": kind != "full", "segments": segments}
    traced = jax.jit(lambda *a: gradient(*a, **options)).trace(*inputs(128, 64)[:3])
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 3


@pytest.mark.parametrize("what", ["short", "dropped"])
def test_what_splash_does_not_take_is_plain_on_a_tpu(what):
    options = {"rate": 0.1, "key": jax.random.key(0)} if what == "dropped" else {}
    traced = jax.jit(lambda *a: gradient(*a, **options)).trace(
        *inputs(128 if options else 64, 8)[:3]
    )
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.fixture
def cudnn(monkeypatch):
    """JAX asks the installed cuDNN for its version; a machine without a GPU may have none."""
    from jax._src.cudnn import fused_attention_stablehlo as library

    class Versions:
        @staticmethod
        def cudnn_get_version():
            return 91000

    if library.cuda_versions is None:
        monkeypatch.setattr(library, "cuda_versions", Versions)


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("causal", [True, False])
def test_lowered_for_nvidia_it_is_cudnn(causal):
    traced = jax.jit(lambda *a: gradient(*a, causal=causal)).trace(
        *inputs(64, 64, jnp.bfloat16)[:3]
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax(" in text.replace('"', "(")
    assert "__cudnn$fmhaSoftmaxBackward(" in text.replace('"', "(")
    assert ("CAUSAL" in text) == causal


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("width", "dtype", "segments"),
    [(64, jnp.float32, False), (136, jnp.bfloat16, False), (64, jnp.bfloat16, True)],
)
def test_what_cudnn_does_not_take_is_plain_on_nvidia(width, dtype, segments):
    options = {"segments": documents(64)} if segments else {}
    traced = jax.jit(lambda *a: gradient(*a, **options)).trace(*inputs(64, width, dtype)[:3])
    assert "cudnn" not in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("t", "width"), [(32, 78), (33, 64)])
def test_padded_for_cudnn_it_computes_the_same(monkeypatch, causal, t, width):
    """Run with XLA's own form in cuDNN's place."""
    arrays = inputs(t, width, jnp.bfloat16)
    kernel = kernels._cudnn(*arrays[:3], causal)
    library, taken = jax.nn.dot_product_attention, []

    def form(q, *others, implementation, **options):
        taken.append((q.shape[1], q.shape[-1], implementation))
        return library(q, *others, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", form)
    exact = [array.astype(jnp.float32) for array in arrays]
    pairs = both(lambda q, k, v: kernel(q, k, v, None), lambda *a: plain(*a, None, causal), *exact)
    for one, two in pairs:
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert set(taken) == {(t + t % 2, width + -width % 8, "cudnn")}


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("causal", [True, False])
def test_a_gradient_over_an_odd_length_is_lowered_to_cudnn(causal):
    traced = jax.jit(lambda *a: gradient(*a, causal=causal)).trace(
        *inputs(65, 78, jnp.bfloat16)[:3]
    )
    assert "__cudnn$fmha" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_without_cudnn_there_is_still_a_program(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as library

    monkeypatch.setattr(library, "cuda_versions", None)
    traced = jax.jit(gradient).trace(*inputs(64, 64, jnp.bfloat16)[:3])
    assert "cudnn" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def has_gpu():
    return any(device.platform == "gpu" for device in jax.local_devices())


@pytest.mark.skipif("not has_gpu()", reason="needs an NVIDIA GPU; this machine has none")
@pytest.mark.parametrize(("t", "width"), [(256, 64), (255, 78)])
@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_is_the_plain_form(causal, t, width):
    arrays = inputs(t, width, jnp.bfloat16)
    assert kernels._cudnn(*arrays[:3], causal) is not None

    def form(q, k, v):
        return self_attention(q, k, v, causal=causal)

    def other(q, k, v):
        return plain(q, k, v, None, causal)

    for one, two in both(form, other, *arrays):
        one, two = one.astype(jnp.float32), two.astype(jnp.float32)
        np.testing.assert_allclose(one, two, atol=2e-2 * float(jnp.abs(two).max()))


@pytest.mark.slow
@pytest.mark.usefixtures("cudnn")
@our_writers
def test_a_train_step_lowered_for_a_tpu_or_gpu_has_the_kernel(arch):
    package = jaxmodels.arch(arch)
    size = {"side": 48} if arch == "wigip" else {"context": 128}
    config = replace(package.PRESETS["tiny"], **size)
    recipe = replace(package.RECIPES["tiny"], accum=1, dtype="bfloat16")
    tx, mesh = optimiser(recipe.optim, 1e-3), make_mesh()
    graphdef, _, state = init(package, config, recipe, tx, mesh)
    batch = {"tokens": jax.ShapeDtypeStruct((1, config.context + 1), np.int32)}
    step = train_step(package, graphdef, tx, lambda _: 1e-3, recipe, state)
    traced = step.trace(state, batch)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "__cudnn$fmha" in traced.lower(lowering_platforms=("cuda",)).as_text()
