"""Orbax's API v1: what its own functions write, in the layouts that they have."""

import jax.numpy as jnp
import pytest
from flax import nnx
from orbax.checkpoint.experimental import v1 as ocp

import bridge
from jaxmodels.errors import CORRUPT, Problem
from tests.bridge.test_orbax_forms import adam, model, params, the_model_in

pytestmark = pytest.mark.filterwarnings("ignore")
TREES = {
    "pure": params,
    "state": lambda: nnx.state(model()),
    "with a step": lambda: {"params": params(), "step": jnp.int32(3)},
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree(tmp_path, name):
    ocp.save_pytree(tmp_path / "one", TREES[name]())
    the_model_in(tmp_path / "one")


def managed(root, items, name="pytree", **options):
    """The folder of a Checkpointer: random weights in step 1, the model's in step 2."""
    with ocp.training.Checkpointer(root, **options) as checkpointer:
        for step, one in ((1, items | {name: {"params": {"x": jnp.ones(2)}}}), (2, items)):
            checkpointer.save_checkpointables(step, one)
    return root


@pytest.mark.parametrize("name", ["pytree", "model_state"])
def test_the_newest_step_of_a_checkpointer(tmp_path, name):
    others = {"optimizer_state": adam(), "metadata": {"x": 1}, "teacher_state": params()}
    if name == "pytree":
        others.pop("teacher_state")
    root = managed(tmp_path / "run", {name: nnx.state(model())} | others, name)
    source = the_model_in(root)
    assert source.origin["step"] == 2
    assert source.moments() is not None
    the_model_in(root / "2")


def test_steps_with_names_of_their_own(tmp_path):
    formatted = ocp.path.step.standard_name_format(step_prefix="ckpt", step_format_fixed_length=6)
    root = tmp_path / "run"
    with ocp.training.Checkpointer(root, step_name_format=formatted) as checkpointer:
        checkpointer.save_pytree(12, params())
    assert (root / "ckpt_000012").is_dir()
    assert the_model_in(root).origin["step"] == 12


@pytest.mark.parametrize("saving", [{"use_zarr3": True}, {"use_ocdbt": False}])
def test_however_the_arrays_are_stored(tmp_path, saving):
    arrays = ocp.options.ArrayOptions(saving=ocp.options.ArrayOptions.Saving(**saving))
    with ocp.Context(array_options=arrays):
        ocp.save_pytree(tmp_path / "one", params())
    the_model_in(tmp_path / "one")


def test_what_is_saved_in_parts_is_read_when_it_is_complete(tmp_path):
    names = list(params())
    for part in (names[:2], names[2:]):
        ocp.partial.save(tmp_path / "one", {name: params()[name] for name in part})
    with pytest.raises(Problem, match="never finished") as caught:
        bridge.open_checkpoint(tmp_path / "one.partial_save")
    assert caught.value.exit_code == CORRUPT
    ocp.partial.finalize(tmp_path / "one")
    the_model_in(tmp_path / "one")
