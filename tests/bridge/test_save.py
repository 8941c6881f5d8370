"""`bridge.save`: a model in memory becomes a model directory."""

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxmodels
from bridge.core.state import state_shapes
from jaxmodels.errors import EXISTS, USAGE, Problem
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline
from tests.bridge.helpers import random_params, random_state
from tests.contract import ours, smallest


def new(arch):
    """A model of random numbers, state included; nothing is compiled."""
    spec = f"{arch}:smallest"
    graphdef, _, rest = split(outline(jaxmodels.arch(arch), smallest(arch)))
    state = {path: jnp.asarray(x) for path, x in random_state(spec).items()}
    assert state.keys() == rest.keys()
    return graphdef.merge({p: jnp.asarray(x) for p, x in random_params(spec).items()}, state)


def arrays(model):
    """Path → array of all parameters, and of the state that belongs to a checkpoint."""
    _, params, rest = split(model)
    kept = state_shapes(jaxmodels.package_of(model).name, model.config)
    state = {path: x for path, x in rest.items() if path in kept}
    return {path: np.asarray(x) for path, x in (params | state).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@ours
def test_what_is_saved_is_loaded(arch, tmp_path):
    model = new(arch)
    report = bridge.save(model, tmp_path / "model")
    loaded = bridge.load(tmp_path / "model")
    assert loaded.config == model.config
    assert_same(arrays(loaded), arrays(model))
    assert (report.arch, report.format) == (arch, "safetensors")
    assert {"config.json", "manifest.json", "README.md"} <= {*report.files}
    assert damage(tmp_path / "model") == []


def test_a_changed_model_keeps_its_tokeniser_and_its_dtypes(model_directory, tmp_path):
    model = bridge.load(model_directory, dtype="bfloat16")
    kernel = model.blocks[0].attn.proj.kernel
    kernel[...] = kernel[...] * 2
    bridge.save(model, tmp_path / "twice")
    assert_same(arrays(bridge.load(tmp_path / "twice")), arrays(model))
    assert (tmp_path / "twice/characters.json").read_bytes() == (
        model_directory / "characters.json"
    ).read_bytes()
    report = bridge.inspect(tmp_path / "twice")
    assert report.vocab_present
    assert report.dtypes.keys() == {"bfloat16"}


def test_a_copy_takes_the_tokeniser_of_the_checkpoint_it_is_like(model_directory, tmp_path):
    graphdef, params, rest = split(bridge.load(model_directory))
    copy = graphdef.merge(params, rest)
    bridge.save(copy, tmp_path / "bare")
    bridge.save(copy, tmp_path / "dressed", like=model_directory)
    assert not (tmp_path / "bare/characters.json").exists()
    assert (tmp_path / "dressed/characters.json").exists()


def test_metrics_of_an_earlier_state_are_not_those_of_a_changed_one(model_directory, tmp_path):
    bridge.save(bridge.load(model_directory), tmp_path / "model")
    assert "step" not in (tmp_path / "model/README.md").read_text().partition("## How")[0]


def test_nothing_is_replaced_without_force(model_directory, tmp_path):
    model = bridge.load(model_directory)
    bridge.save(model, tmp_path / "model")
    with pytest.raises(Problem, match="exists") as raised:
        bridge.save(model, tmp_path / "model")
    assert raised.value.exit_code == EXISTS
    bridge.save(model, tmp_path / "model", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("…")
    with pytest.raises(Problem, match="did not write"):
        bridge.save(model, tmp_path / "mine", force=True)
    assert (tmp_path / "mine/thesis.txt").exists()


def test_arrays_of_another_size_than_the_config_says_are_refused(tmp_path):
    model = new("charlm")
    model.blocks[0].attn.proj.kernel.set_value(jnp.zeros((3, 3)))
    with pytest.raises(Problem, match="not those of its config") as raised:
        bridge.save(model, tmp_path / "model")
    assert raised.value.exit_code == USAGE
    assert "attn/proj/kernel" in raised.value.where
    assert not any(tmp_path.iterdir())


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(Problem, match="not from a registered architecture"):
        bridge.save(object(), tmp_path / "model")
