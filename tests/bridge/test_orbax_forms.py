"""Orbax checkpoints in common forms, made by orbax, flax and optax themselves."""

import json
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import bridge
from jaxmodels import charlm
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

CONFIG = replace(charlm.PRESETS["tiny"], vocab=11, dim=16, layers=2, context=8, heads=8)
ADAM = optax.adamw(1e-3)


@cache
def model():
    return charlm.Model(CONFIG, rngs=nnx.Rngs(0))


@cache
def params():
    return nnx.to_pure_dict(nnx.state(model(), nnx.Param))


def adam(of=None, steps=2):
    of = params() if of is None else of
    state = ADAM.init(of)
    for _ in range(steps):
        _, state = ADAM.update(of, state, of)
    return state


def save(folder, tree, **options):
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(folder, tree)
    return folder


def flat():
    return {"/".join(map(str, path)): value for path, value in flatten_dict(params()).items()}


def the_model_in(path):
    """The source, whose parameters are `params()` bit for bit."""
    source = bridge.open_checkpoint(path)
    assert (source.arch, source.config.layers) == ("charlm", 2)
    found = {name: tensor.read() for name, tensor in source.tensors.items()}
    assert found.keys() == flat().keys()
    for name, array in flat().items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    return source


def split_by(*filters):
    return nnx.split(model(), *filters, ...)[1:]


def kernels():
    return nnx.All(nnx.Param, lambda path, _: path[-1] == "kernel")


TREES = {
    "params": lambda: {"params": params()},
    "linen": lambda: {"params": {"params": params()}},
    "flat": flat,
    "tuple": lambda: (params(), adam(), 7),
    "state": lambda: nnx.state(model()),
    "params and rest": lambda: dict(zip(("params", "rest"), split_by(nnx.Param), strict=True)),
    "kernels, others, rest": lambda: list(split_by(kernels(), nnx.Param)),
    "average": lambda: {"params": params(), "ema_params": jax.tree.map(np.zeros_like, params())},
    "sgd": lambda: {"params": params(), "opt_state": optax.sgd(1, momentum=0.9).init(params())},
    "adafactor": lambda: (optax.adafactor(1e-3).init(params()), {"params": params()}),
    "others": lambda: {"rng": jax.random.PRNGKey(0), "x": None, "name": "a", "params": params()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_the_model_is_found_in_a_tree(tmp_path, name):
    source = the_model_in(save(tmp_path / "tree", TREES[name]()))
    assert source.moments() is None or name == "tuple"


@pytest.mark.parametrize(
    "options", [{"use_ocdbt": False}, {"use_zarr3": True}, {"use_ocdbt": False, "use_zarr3": True}]
)
def test_however_the_arrays_are_stored(tmp_path, options):
    the_model_in(save(tmp_path / "tree", {"params": params(), "opt_state": adam()}, **options))


STATES = {
    "flax": lambda: {"params": params(), "opt_state": adam(), "step": 2},
    "linen": lambda: {"params": {"params": params()}, "opt_state": adam({"params": params()})},
    "clipped": lambda: {
        "params": params(),
        "opt_state": (optax.EmptyState(), adam()),
        "step": np.int32(2),
    },
    "old nnx": lambda: {"optimizer": {"model": nnx.state(model()), "opt_state": adam()}},
}


@pytest.mark.parametrize("name", STATES)
def test_adams_moments_come_along(tmp_path, name):
    source = the_model_in(save(tmp_path / "tree", STATES[name]()))
    moments = source.moments()
    assert moments.count == 2
    kernel = np.asarray(adam()[0].mu["head"]["kernel"])
    np.testing.assert_array_equal(moments.mu["head/kernel"].read(), kernel)
    assert any("opt_state" in note for note in source.notes if note.startswith("left aside"))


@pytest.mark.parametrize("kind", [nnx.Optimizer, nnx.ModelAndOptimizer])
def test_optimisers_of_nnx(tmp_path, kind):
    optimizer = kind(model(), ADAM, wrt=nnx.Param)
    state = nnx.state(optimizer)
    tree = {"model": nnx.state(model()), "optimizer": state} if kind is nnx.Optimizer else state
    source = the_model_in(save(tmp_path / "tree", tree))
    assert source.moments().count == 0
    assert "left aside: steps, which begins anew with every model" in source.notes
    if kind is nnx.Optimizer:
        assert "holds an optimiser's state but no model" in refused(
            MISMATCH, save(tmp_path / "alone", state)
        )


@pytest.mark.parametrize(
    "opt",
    [optax.amsgrad(1e-3), optax.lion(1e-3)],
    ids=["amsgrad", "lion"],
)
def test_other_optimisers_are_not_taken_for_adam(tmp_path, opt):
    tree = {"params": params(), "opt_state": opt.init(params())}
    assert the_model_in(save(tmp_path / "tree", tree)).moments() is None


def refused(exit_code, path):
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(path)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


def test_two_models_are_not_chosen_from(tmp_path):
    told = refused(MISMATCH, save(tmp_path / "tree", {"student": params(), "teacher": params()}))
    assert "several models" in told
    assert "student" in told


@pytest.fixture(scope="module")
def managed(tmp_path_factory):
    """Steps 5 and 120 of a CheckpointManager; the older holds other numbers."""
    folder = tmp_path_factory.mktemp("managed") / "run"
    options = ocp.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=6)
    with ocp.CheckpointManager(folder, options=options) as manager:
        for step, factor in ((5, 0.0), (120, 1.0)):
            held = jax.tree.map(lambda x, by=factor: x * by, params())
            items = {
                "params": ocp.args.StandardSave(held),
                "opt_state": ocp.args.PyTreeSave(adam()),
                "about": ocp.args.JsonSave({"a": 1}),
                "key": ocp.args.JaxRandomKeySave(jax.random.key(1)),
            }
            manager.save(step, args=ocp.args.Composite(**items))
    return folder


def test_a_managers_folder_gives_its_newest_step(managed):
    source = the_model_in(managed)
    assert "using step ckpt_000120, the newest of 2" in source.notes
    assert source.origin["step"] == 120
    assert source.moments().count == 2
    step = the_model_in(managed / "ckpt_000120")
    assert step.origin["step"] == 120
    the_model_in(managed / "ckpt_000120" / "params")


def test_steps_that_are_trees_themselves(tmp_path):
    for step in (9, 10):
        save(tmp_path / "run" / f"step_{step}", nnx.state(model()))
    source = the_model_in(tmp_path / "run")
    assert "using step step_10, the newest of 2" in source.notes
    save(tmp_path / "run" / "other_11", nnx.state(model()))
    assert "several trainings" in refused(MISMATCH, tmp_path / "run")


def unfinished_by_name(step):
    step.rename(step.with_name(step.name + ".orbax-checkpoint-tmp-17"))


def unfinished_by_file(step):
    (step / "commit_success.txt").unlink()


def unfinished_by_metadata(step):
    path = step / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": None}))


@pytest.mark.parametrize("spoil", [unfinished_by_name, unfinished_by_file, unfinished_by_metadata])
def test_unfinished_steps_are_passed_over_or_refused(tmp_path, spoil):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave(params()))
    spoil(tmp_path / "run" / "2")
    notes = the_model_in(tmp_path / "run").notes
    assert "using step 1, the newest of 1" in notes
    (left,) = (path for path in (tmp_path / "run").iterdir() if path.name.startswith("2"))
    assert any(note.startswith(f"left aside: {left.name}: ") for note in notes)
    assert "never finished" in refused(CORRUPT, left)
    spoil(tmp_path / "run" / "1")
    assert "never finished" in refused(CORRUPT, tmp_path / "run")


def test_the_config_beside_a_manager_counts(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=ocp.args.StandardSave({"params": params()}))
    config = {"arch": "charlm", "heads": 2, "context": 24}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for path in (tmp_path / "run", tmp_path / "run" / "3"):
        source = bridge.open_checkpoint(path)
        assert (source.config.heads, source.config.context) == (2, 24)
        assert "heads" not in source.assumed


def test_what_orbax_calls_v1(tmp_path):
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    v1.save(tmp_path / "tree", {"params": params(), "opt_state": adam()})
    assert the_model_in(tmp_path / "tree").moments().count == 2


def test_a_lost_array_is_a_damage(tmp_path):
    folder = save(tmp_path / "tree", {"params": params()}, use_ocdbt=False)
    (folder / "params.head.kernel" / "0.0").unlink()
    source = bridge.open_checkpoint(folder)
    with pytest.raises(Problem, match="cannot be read"):
        source.tensors["head/kernel"].read()


def test_an_array_that_is_stored_larger_than_it_is(tmp_path):
    """A piece is held whole when it is read, however small it is in the file."""
    tree = save(tmp_path / "tree", params(), use_ocdbt=False, use_zarr3=False)
    place = next(path for path in tree.iterdir() if path.name.endswith("scale"))
    said = json.loads((place / ".zarray").read_text())
    size = said["shape"][0]
    said |= {"compressor": None, "chunks": [2 * size]}
    (place / ".zarray").write_text(json.dumps(said))
    (place / "0").write_bytes(np.ones(2 * size, np.float32).tobytes())
    tensors = bridge.open_checkpoint(tree).tensors
    with pytest.raises(Problem, match="cannot be read") as caught:
        tensors[place.name.replace(".", "/")].read()
    assert caught.value.exit_code == CORRUPT
    assert "it is stored in pieces of" in caught.value.why
