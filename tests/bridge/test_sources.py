import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxmodels
from bridge.checkpoint.config import parse_settings
from bridge.core.tensors import DTYPES
from jaxmodels.errors import CORRUPT, MISMATCH, USAGE, Problem
from jaxmodels.runtime.paths import params_of
from tests.bridge.helpers import (
    GOLDEN,
    HEADS,
    SEED,
    assert_same_params,
    flip,
    random_params,
    save_tree,
    seed_tree,
    write_run,
)


def refused(exit_code, path, **options):
    with pytest.raises(Problem) as caught:
        bridge.load(path, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


@pytest.mark.slow
def test_seed_gives_the_golden_logits():
    model = bridge.load(SEED, config=HEADS)
    golden = np.load(GOLDEN / "io.npz")
    logits, _ = model(jnp.asarray(golden["ids"]))
    assert np.abs(np.asarray(logits) - golden["logits"]).max() <= 2e-5


def test_what_the_seed_does_not_say_is_assumed_and_reported():
    source = bridge.open_checkpoint(SEED)
    assert source.assumed == {"heads": 8, "context": 1024, "dropout": 0.0}
    assert "assumed: heads = 8" in source.notes
    source = bridge.open_checkpoint(SEED, config=HEADS)
    assert "heads" not in source.assumed
    assert (source.arch, source.format, source.config.heads) == ("charlm", "orbax", 4)


def test_an_nnx_state_saved_whole(tmp_path):
    tree = {f"{name}/value": array for name, array in seed_tree().items()}
    tree["layers/0/attn/rope/inv_freq/value"] = 10_000 ** -(np.arange(4, dtype=np.float32) / 4)
    tree["layers/0/ffn/dropout/rngs/count/value"] = np.zeros((), np.uint32)
    source = bridge.open_checkpoint(save_tree(tmp_path / "state", tree))
    assert "dropped: layers.0.attn.rope.inv_freq, no parameter" in source.notes
    assert any(".value" in note for note in source.notes)
    # Four frequencies for each head of width 8: the file tells the head count after all.
    assert source.config.heads == HEADS["heads"]
    assert "heads" not in source.assumed
    model = bridge.load(tmp_path / "state")
    assert_same_params(model, params_of(bridge.load(SEED, config=HEADS)))


def test_our_own_parameters_in_orbax(tmp_path):
    params = random_params()
    model = bridge.load(save_tree(tmp_path / "own", params), config={"heads": 2})
    assert_same_params(model, params)


def test_missing_and_extra_tensors(tmp_path):
    tree = seed_tree()
    del tree["layers/1/norm2/scale"]
    tree["layers/0/surprise"] = np.ones((2, 3), np.float32)
    told = refused(MISMATCH, save_tree(tmp_path / "tree", tree), config=HEADS)
    assert "layers.1.norm2.scale  (32,)" in told
    assert "layers.0.surprise  (2, 3)" in told


def test_wrong_shape(tmp_path):
    tree = seed_tree()
    tree["layers/1/attn/qkv/kernel"] = tree["layers/1/attn/qkv/kernel"].T
    told = refused(MISMATCH, save_tree(tmp_path / "tree", tree), config=HEADS)
    assert "layers.1.attn.qkv.kernel  is (96, 32), must be (32, 96); a transpose would fit" in told


def test_without_what_tells_the_sizes(tmp_path):
    tree = seed_tree()
    del tree["embed/embedding"]
    told = refused(MISMATCH, save_tree(tmp_path / "tree", tree))
    assert "embed/embedding" in told


def test_a_stranger_is_no_model(tmp_path):
    tree = {"a/b": np.ones(3, np.float32), "c": np.ones(2, np.float32)}
    told = refused(MISMATCH, save_tree(tmp_path / "tree", tree))
    assert "a.b  (3,)  float32" in told


@pytest.mark.parametrize(
    ("config", "exit_code", "said"),
    [
        ({"head": 4}, USAGE, "did you mean heads"),
        ({"heads": "four"}, USAGE, "'heads' cannot be 'four'"),
        ({"heads": True}, USAGE, "'heads' cannot be True"),
        ({"layers": 3}, MISMATCH, "missing, 11 of 38"),
    ],
)
def test_overrides(config, exit_code, said):
    assert said in refused(exit_code, SEED, config=config)


def test_unknown_architecture():
    assert "charlm" in refused(USAGE, SEED, arch="charml")


def test_settings_from_the_command_line():
    assert parse_settings(["heads=4", "mlp_ratio=2.5", "name=x"]) == {
        "heads": 4,
        "mlp_ratio": 2.5,
        "name": "x",
    }
    with pytest.raises(Problem):
        parse_settings(["heads"])


def test_run_takes_the_best_checkpoint(run):
    source = bridge.open_checkpoint(run)
    assert source.origin == {"step": 200, "metrics": {"valid_loss": 1.5}}
    assert source.preset == "tiny"
    assert source.config == jaxmodels.arch("charlm").PRESETS["tiny"]
    assert not source.assumed
    assert source.tokenizer.vocab_size == 64
    assert_same_params(bridge.load(run), random_params(seed=200))


def test_run_without_losses_takes_the_newest(tmp_path):
    run = write_run(tmp_path / "run", {9: None, 10: None})
    assert bridge.open_checkpoint(run).origin["step"] == 10


def test_a_checkpoint_of_a_run(run):
    step = run / "checkpoints" / "100"
    assert_same_params(bridge.load(step), random_params(seed=100))
    assert bridge.open_checkpoint(step).tokenizer is not None


def test_damaged_checkpoints_are_passed_over_and_named(tmp_path):
    run = write_run(tmp_path / "run", {1: 2.0, 2: 1.0, 3: 3.0})
    data = max((run / "checkpoints/2/params").rglob("*"), key=lambda path: path.stat().st_size)
    flip(data)
    source = bridge.open_checkpoint(run)
    assert source.origin["step"] == 1
    assert any("checkpoint 2 is damaged" in note and data.name in note for note in source.notes)
    assert data.name in refused(CORRUPT, run / "checkpoints" / "2")
    for step in "13":
        (run / "checkpoints" / step / "manifest.json").unlink()
    told = refused(CORRUPT, run)
    assert "every checkpoint is damaged" in told
    assert "checkpoint 3" in told


def test_a_run_without_checkpoint(tmp_path):
    run = write_run(tmp_path / "run", {})
    (run / "checkpoints").mkdir()
    assert "no checkpoint yet" in refused(CORRUPT, run)


def test_model_directory_is_recognised_by_content(converted, tmp_path):
    bare = tmp_path / "weights.pkl"
    shutil.copyfile(converted / "model.safetensors", bare)
    golden = params_of(bridge.load(SEED, config=HEADS))
    assert_same_params(bridge.load(bare, config=HEADS), golden)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(bare, folder / "anything")
    assert_same_params(bridge.load(folder, config=HEADS), golden)
    assert_same_params(bridge.load(converted), golden)


def test_dtype_of_load():
    model = bridge.load(SEED, dtype="bfloat16", config=HEADS)
    assert {np.dtype(leaf.dtype) for leaf in params_of(model).values()} == {DTYPES["BF16"]}
    refused(USAGE, SEED, dtype="int8", config=HEADS)


def test_a_damaged_tensor_is_never_loaded(converted, tmp_path):
    copy = shutil.copytree(converted, tmp_path / "copy")
    flip(copy / "model.safetensors")
    told = refused(CORRUPT, copy)
    assert "is damaged" in told
    assert str(copy) in told


@pytest.mark.parametrize(
    ("text", "exit_code"),
    [
        ("not json", CORRUPT),
        ("[1]", CORRUPT),
        ('{"arch": "charlm", "arch": "x"}', CORRUPT),
        ('{"layers": "two"}', CORRUPT),
        ('{"layers": 1000000000}', MISMATCH),
        ('{"layers": 3}', MISMATCH),
    ],
)
def test_a_config_that_lies(converted, tmp_path, text, exit_code):
    copy = shutil.copytree(converted, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    if text.startswith('{"layers'):
        text = json.dumps(config | json.loads(text))
    (copy / "config.json").write_text(text)
    told = refused(CORRUPT, copy)
    assert "manifest" in told or "JSON" in told
    (copy / "manifest.json").unlink()
    refused(exit_code, copy)


def test_two_models_in_one_folder(converted, tmp_path):
    copy = shutil.copytree(converted, tmp_path / "copy")
    shutil.copyfile(copy / "model.safetensors", copy / "other.safetensors")
    assert "other.safetensors" in refused(CORRUPT, copy)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04rest of a zip", "its end is missing"),
        (b"\x80\x04]", "known are"),
    ],
)
def test_unknown_files(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert said in refused(CORRUPT, path)


def test_nothing_there(tmp_path):
    refused(CORRUPT, tmp_path / "nothing")
    assert "nothing" in refused(CORRUPT, tmp_path)


def test_damaged_orbax_never_crashes(tmp_path):
    copy = shutil.copytree(SEED, tmp_path / "copy")
    for file in (copy / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    told = refused(CORRUPT, copy, config=HEADS)
    assert "Orbax checkpoint cannot be read" in told
