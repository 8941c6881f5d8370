"""wigip's step_N.zip, written: as Python's own loader, numpy, optax and the seed want it."""

import json
import pickle
import shutil
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

import bridge
import jaxmodels
from bridge.checkpoint.loading import load_moments
from bridge.formats import recognise
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.runtime.manifest import write_sealed
from tests.bridge.helpers import write_run
from tests.bridge.zips import (
    STATE,
    ZIP,
    params_of,
    plain_blocks,
    resaved,
    same_tree,
    seeds_loader,
    unpacked,
)
from tests.contract import smallest


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code, (caught.value.what, caught.value.why)
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


@pytest.mark.parametrize("by", [None, "safetensors", "orbax", "wigip-zip"])
def test_there_and_back(tmp_path, by):
    between = ZIP
    if by:
        between = tmp_path / "between"
        bridge.convert(ZIP, between, to=by, verify="roundtrip")
    level = "roundtrip" if by else "logits"
    report = bridge.convert(between, tmp_path / "out", to="wigip-zip", verify=level)
    assert report.files == ["manifest.json", "step_7.zip"]
    ours = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "a")
    theirs = seeds_loader(ZIP, tmp_path / "b")
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        same_tree(ours[name], value)
    assert type(ours[STATE]["opt_state"]) is tuple


def test_a_model_with_images_comes_back_with_its_weight(tmp_path):
    """It is no tensor and no size; the seed's members stay as they are."""
    config = replace(smallest("wigip"), images=True, image_weight=0.1)
    bridge.save(jaxmodels.arch("wigip").Model(config, rngs=nnx.Rngs(0)), tmp_path / "model")
    bridge.convert(tmp_path / "model", tmp_path / "out", to="wigip-zip", verify="roundtrip")
    written = bridge.open_checkpoint(tmp_path / "out")
    assert (written.config.images, written.config.image_weight) == (True, 0.1)
    values = seeds_loader(tmp_path / "out" / "step_0.zip", tmp_path / "a")
    assert values[STATE].keys() == {"step", "opt_state"}


@pytest.mark.slow
def test_verify_compares_it_with_the_source(tmp_path):
    bridge.convert(ZIP, tmp_path / "out", to="wigip-zip")
    report = bridge.verify(tmp_path / "out", against=ZIP)
    assert (report.ok, report.tensors_equal, report.digests_ok) == (True, 40, True)


def test_the_same_again_is_the_same_file(tmp_path, monkeypatch):
    bridge.convert(ZIP, tmp_path / "a", to="wigip-zip")
    monkeypatch.setattr("time.time", lambda: 2e9)
    bridge.convert(tmp_path / "a", tmp_path / "b", to="wigip-zip")
    a, b = ((tmp_path / name / "step_7.zip").read_bytes() for name in "ab")
    assert a == b
    assert all(type(array) is np.ndarray for array in self_arrays(tmp_path / "a" / "step_7.zip"))
    with zipfile.ZipFile(tmp_path / "a" / "step_7.zip") as ours, zipfile.ZipFile(ZIP) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())
        assert ours.testzip() is None


def self_arrays(path):
    return [x for data in unpacked(path).values() for x in jax.tree.leaves(pickle.loads(data))]


@pytest.mark.slow
def test_old_numpy_would_find_its_names(tmp_path):
    bridge.convert(ZIP, tmp_path / "out", to="wigip-zip")
    for data in unpacked(tmp_path / "out" / "step_7.zip").values():
        assert b"numpy.core.multiarray" in data
        assert b"numpy._core" not in data


@pytest.mark.slow
def test_the_seeds_optimiser_goes_on(tmp_path):
    bridge.convert(ZIP, tmp_path / "out", to="wigip-zip")
    values = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "a")
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-4, 2000, 608_000, 1e-5)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule))
    params, state = params_of(values), values[STATE]["opt_state"]
    assert jax.tree.structure(tx.init(params)) == jax.tree.structure(state)
    _, state = tx.update(params, state, params)
    assert int(state[1][1].count) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions_are_written(tmp_path, dtype):
    bridge.convert(ZIP, tmp_path / "out", to="wigip-zip", dtype=dtype)
    values = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "a")
    kernel = params_of(values)["Dense_0"]["kernel"]
    assert kernel.dtype == getattr(ml_dtypes, dtype, dtype)
    assert bridge.open_checkpoint(tmp_path / "out").tensors["head/kernel"].dtype == kernel.dtype


def adam_zip(path, updates=3, blocks=lambda v: v):
    """A checkpoint of someone who put AdamW in the place of SGD."""

    def change(values):
        values = blocks(values)
        params = params_of(values)
        tx = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-3, 0, 100))
        )
        state = tx.init(params)
        for i in range(updates):
            _, state = tx.update(jax.tree.map(lambda x: x + i, params), state, params)  # noqa: B023
        return values | {STATE: {"step": jnp.asarray(7), "opt_state": jax.device_get(state)}}

    return resaved(path, change)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [lambda v: v, plain_blocks])
def test_adams_moments_cross_and_come_back(tmp_path, blocks):
    path = adam_zip(tmp_path / "x.zip", blocks=blocks)
    held = load_moments(path)
    assert held.count == 3
    assert bridge.inspect(path).optimizer
    theirs = seeds_loader(path, tmp_path / "a")[STATE]["opt_state"]
    mu = params_of({f"params/{k}.pkl.gz": v for k, v in theirs[1][0].mu.items()})
    np.testing.assert_array_equal(held.mu["head/kernel"].read(), mu["Dense_0"]["kernel"])
    bridge.convert(path, tmp_path / "between", optimizer=True, verify="roundtrip")
    bridge.convert(
        tmp_path / "between", tmp_path / "out", to="wigip-zip", optimizer=True, verify="roundtrip"
    )
    ours = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "b")[STATE]["opt_state"]
    same_tree(ours, theirs)


@pytest.mark.slow
def test_moments_are_left_behind_unless_asked_for(tmp_path):
    path = adam_zip(tmp_path / "x.zip")
    bridge.convert(path, tmp_path / "out", to="wigip-zip")
    state = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "b")[STATE]["opt_state"]
    assert jax.tree.structure(state) == jax.tree.structure(sgd_state())
    assert "no optimiser state" in refused(
        MISMATCH, bridge.convert, ZIP, tmp_path / "no", optimizer=True
    )


def sgd_state():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lambda count: 1e-4))
    return tx.init({"a": jnp.zeros(1)})


@pytest.mark.parametrize(
    ("tx", "said"),
    [
        (optax.sgd(1e-3, momentum=0.9), "it has a TraceState"),
        (optax.lion(1e-3), "it has a ScaleByLionState"),
        (optax.MultiSteps(optax.sgd(1e-3), 2), "it has a MultiStepsState"),
    ],
)
def test_other_optimisers_are_named(tmp_path, tx, said):
    state = jax.device_get(tx.init({"a": jnp.zeros(3)}))
    path = resaved(
        tmp_path / "x.zip", lambda v: v | {STATE: {"step": np.int32(9), "opt_state": state}}
    )
    contents = recognise(path)
    assert any(said in note for note in contents.notes)
    assert contents.moments() is None
    bridge.convert(path, tmp_path / "out", to="wigip-zip")
    values = seeds_loader(tmp_path / "out" / "step_9.zip", tmp_path / "a")
    same_tree(values[STATE]["opt_state"][1][1].count, np.asarray(9, np.int32))


@pytest.mark.slow
def test_a_manifest_cannot_make_the_output_name_anything(tmp_path):
    bridge.convert(ZIP, tmp_path / "between")
    file = tmp_path / "between" / "manifest.json"
    for wrong in (
        [{"posix.system": ["echo"]}],
        [{"EmptyState": [1]}],
        {"ScaleByScheduleState": [-1]},
        {"ScaleByScheduleState": [2**40]},
        {"ScaleByAdamState": [1, "mu", "nu"]},
        [[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]],
        "posix.system",
        None,
    ):
        said = json.loads(file.read_text())
        said["source"]["seed"] = {"wigip-zip": {"blocks": "posix", "optimizer": wrong}}
        write_sealed(file, {k: v for k, v in said.items() if k != "seal"})
        bridge.convert(tmp_path / "between", tmp_path / "out", to="wigip-zip", force=True)
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        values = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "a")
        assert jax.tree.structure(values[STATE]["opt_state"]) == jax.tree.structure(sgd_state())
        assert "params/CheckpointAttentionBlock_0.pkl.gz" in values


@pytest.mark.slow
def test_a_run_becomes_a_checkpoint_of_the_seed(tmp_path):
    run = write_run(tmp_path / "run", {100: 2.0, 200: 1.5}, spec="wigip:tiny")
    report = bridge.convert(run, tmp_path / "out", to="wigip-zip", verify="roundtrip")
    assert report.files == ["characters.json", "manifest.json", "step_200.zip"]
    values = seeds_loader(tmp_path / "out" / "step_200.zip", tmp_path / "a")
    assert (values[STATE]["step"].dtype, int(values[STATE]["step"])) == (np.int32, 200)
    assert int(values[STATE]["opt_state"][1][1].count) == 200
    params = params_of(values)
    assert params["pos_emb"].shape == (1, 16, 64)
    block = params["CheckpointAttentionBlock_1"]
    assert block["SelfAttention_0"]["query"]["kernel"].shape == (64, 2, 32)


@pytest.mark.slow
def test_what_the_seed_cannot_compute_is_refused(tmp_path):
    told = refused(
        MISMATCH,
        bridge.convert,
        ZIP,
        tmp_path / "out",
        to="wigip-zip",
        config={"objective": "dense"},
    )
    assert "next_char" in told
    run = write_run(tmp_path / "run", {100: 2.0})
    refused(USAGE, bridge.convert, run, tmp_path / "out", to="wigip-zip")
    assert not (tmp_path / "out").exists()
