"""ONNX graphs: the numbers by onnxruntime, int8 and 2-bit weights, what is refused."""

import io
import json
from dataclasses import replace
from importlib import import_module

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxmodels
from bridge.core.tensors import Tensor
from bridge.core.twins import twin
from bridge.onnx import layers
from bridge.onnx.weights import FILE, Weights, rounded_rows
from jaxmodels import extras
from jaxmodels.errors import CORRUPT, EXISTS, UNVERIFIED, USAGE, Problem
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline
from tests.bridge.helpers import write_run
from tests.contract import smallest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
running = import_module("bridge.onnx.running")

ATOL = 1e-4
ARCHS = ("bitgen", "bwetaf", "charlm", "dinov2", "wikigpt")
# Forms of an architecture that are computed otherwise, or have other parameters.
FORMS = [
    ("wikigpt", {"bias": False, "gelu": "tanh"}),
    ("bwetaf", {"heads": (2, 4), "rotate_qk": True, "embed_scale": 2.0, "residual_scale": 0.9}),
    ("bwetaf", {"positions": "sinusoidal"}),
    ("dinov2", {"registers": 2, "mlp": "swiglu", "interpolation": "antialias"}),
    ("dinov2", {"interpolation": "scale_offset"}),
    ("bitgen", {"addressing": "iteration", "merge": 1, "layers": 2, "fused": 1}),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of charlm."""
    return write_run(tmp_path_factory.mktemp("run") / "run", {1: None})


def refused(code, *args, **options):
    with pytest.raises(Problem) as caught:
        bridge.convert(*args, **options)
    assert caught.value.exit_code == code
    problem = caught.value
    return "\n".join(str(part) for part in (problem.what, problem.why, problem.fix))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_outputs_are_ours(tmp_path, arch):
    """Of a prompt, token by token, with padding, of other batches and sizes: within 1e-4."""
    write_run(tmp_path / "run", {1: None}, spec=f"{arch}:smallest", vocab=arch != "dinov2")
    report = bridge.convert(tmp_path / "run", tmp_path / "out", to="onnx", verify="logits")
    assert report.max_abs_logit_diff <= ATOL
    graphs = sorted((tmp_path / "out").glob("*.onnx"))
    assert len(graphs) == (4 if arch == "bitgen" else 1)
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["arch"] == arch


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "changes"), FORMS, ids=[f"{a}-{next(iter(c))}" for a, c in FORMS])
def test_outputs_of_every_form_are_ours(tmp_path, arch, changes):
    config = replace(smallest(arch), **changes)
    graphdef, params, rest = split(outline(jaxmodels.arch(arch), config))
    rng = np.random.default_rng(0)
    drawn = {p: (rng.normal(size=x.shape) * 0.2).astype(np.float32) for p, x in params.items()}
    state = {
        p: rng.random(x.shape).astype(np.float32)
        if x.dtype == np.float32
        else np.full(x.shape, 3, x.dtype)
        for p, x in rest.items()
    }
    held = drawn | state
    tensors = {p: Tensor(p, x.shape, x.dtype, lambda x=x: x) for p, x in held.items()}
    module = import_module(f"bridge.onnx.{arch}")
    with (tmp_path / FILE).open("wb") as file:
        weights = Weights(tensors, file, lambda tensor: tensor.read())
        for name, graph in module.graphs(config, weights).items():
            (tmp_path / name).write_bytes(graph.model().SerializeToString())
    given = ({p: jnp.asarray(x) for p, x in part.items()} for part in (drawn, state))
    model = graphdef.merge(*given)
    assert module.difference(twin(arch), model, running.Files(tmp_path)) <= ATOL


def test_a_graph_that_computes_something_else_is_removed(tmp_path, run, monkeypatch):
    monkeypatch.setattr(layers, "silu", lambda g, x: x)
    message = refused(UNVERIFIED, run, tmp_path / "out", to="onnx", verify="logits")
    assert "differ from ours" in message
    assert not list(tmp_path.iterdir())


def test_matrices_as_int8(tmp_path, run):
    """Stored so, and the outputs are those of the rounded model."""
    sizes = {}
    for dtype in ("keep", "int8"):
        verify = "logits" if dtype == "int8" else "none"
        report = bridge.convert(run, tmp_path / dtype, to="onnx", dtype=dtype, verify=verify)
        sizes[dtype] = (tmp_path / dtype / FILE).stat().st_size
    assert report.max_abs_logit_diff <= ATOL
    assert report.max_rounding_error > 0
    assert sizes["int8"] < 0.4 * sizes["keep"]
    model = onnx.load(str(tmp_path / "int8" / "model.onnx"), load_external_data=False)
    kinds = {x.name: x.data_type for x in model.graph.initializer}
    assert kinds["head/kernel/int8"] == onnx.TensorProto.INT8
    assert "norm/scale" in kinds


def test_rounding_to_rows():
    """Within half a step of each row's scale, also of rows of zeros."""
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    values[2] = 0
    for axis in (0, 1):
        levels, scale = rounded_rows(values, axis)
        kept = levels * np.expand_dims(scale, 1 - axis)
        assert (np.abs(kept - values) <= np.expand_dims(scale, 1 - axis) * 0.5 + 1e-7).all()
        assert np.abs(levels).max() == 127


def test_ternary_weights_take_two_bits():
    """Whatever the number of inputs is, and as the model has them."""
    for inputs in (4, 7, 9):
        kernel = np.random.default_rng(inputs).normal(size=(inputs, 3)).astype(np.float32)
        signs, gamma = layers.ternary(kernel)
        packed = layers.packed(signs)
        assert packed.nbytes == -(-inputs // 4) * 3
        parts = [packed >> shift & 3 for shift in (0, 2, 4, 6)]
        assert np.array_equal(np.concatenate(parts)[:inputs].astype(np.int8) - 1, signs)
        assert set(np.unique(signs)) <= {-1, 0, 1}
        assert gamma == pytest.approx(np.abs(kernel).mean())


def test_what_has_no_form_is_refused(tmp_path):
    write_run(tmp_path / "run", {1: None}, spec="wigip:tiny")
    message = refused(USAGE, tmp_path / "run", tmp_path / "out", to="onnx")
    assert "wigip cannot be exported to ONNX" in message
    assert "these can: bitgen, bwetaf, charlm, dinov2, wikigpt" in message


def test_options_that_the_format_has_not_are_refused(tmp_path, run):
    for options, message in (
        ({"dtype": "bfloat16"}, "keep, float32, int8"),
        ({"optimizer": True}, "parameters only"),
        ({"verify": "roundtrip"}, "use --verify logits"),
        ({"verify": "logits", "text": "a"}, "--text and --gradients are not possible"),
        ({"verify": "logits", "gradients": True}, "--text and --gradients are not possible"),
    ):
        assert message in refused(USAGE, run, tmp_path / "out", to="onnx", **options)
    message = refused(USAGE, run, tmp_path / "out", dtype="int8")
    assert "--dtype int8 is for --to onnx" in message


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_extra_is_named_where_it_is_missing(tmp_path, run, monkeypatch, package):
    known = extras.installed
    monkeypatch.setattr(extras, "installed", lambda name: name != package and known(name))
    message = refused(USAGE, run, tmp_path / "out", to="onnx")
    assert f"the package {package}" in message
    assert "pip install 'jaxmodels[onnx]'" in message


def test_graphs_are_not_read_back(tmp_path, run):
    """But known as an earlier output, which --force replaces."""
    bridge.convert(run, tmp_path / "out", to="onnx")
    refused(EXISTS, run, tmp_path / "out", to="onnx")
    bridge.convert(run, tmp_path / "out", to="onnx", force=True)
    with pytest.raises(Problem, match="are not read back") as caught:
        bridge.load(tmp_path / "out")
    assert caught.value.exit_code == CORRUPT


def test_a_dry_run_writes_nothing(tmp_path, run):
    report = bridge.convert(run, tmp_path / "out", to="onnx", dtype="int8", dry_run=True)
    assert {row["dtype"] for row in report.plan} == {"int8", "float32"}
    assert report.files == [FILE]
    assert not (tmp_path / "out").exists()


def test_values_read_as_numpy():
    """Operators on values compute what they say, for numbers on either side."""
    from bridge.onnx.graph import Graph

    g = Graph("test", Weights({}, io.BytesIO(), lambda tensor: tensor.read()))
    x = g.input("x", np.float32, "a", 4)
    y = 1.0 / (x * x + 1.0) + (-x) * 3.0
    g.output("y", y - 2.0, "a", 4)
    g.output("n", g.range(0, x.size(0)), "a")
    session = onnxruntime.InferenceSession(g.model().SerializeToString())
    given = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    found, count = session.run(None, {"x": given})
    assert np.abs(found - (1 / (given**2 + 1) - 3 * given - 2)).max() <= 1e-5
    assert count.tolist() == [0, 1, 2]
