"""bwetaf's folders: in, through every format of ours, and out again, byte for byte."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import bridge
from bridge.checkpoint.loading import load_moments
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from tests.bridge.helpers import random_params, save_tree, vocabulary

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDENS = ["bwetaf_rope", "bwetaf_sin"]
WEIGHTS, CONFIG, OPTIMIZER = (
    "good_stuff.pkl",
    "understanding_good_stuff.json",
    "make_stuff_better.pkl",
)


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


@pytest.fixture
def folder(tmp_path):
    """A golden folder that may be changed."""
    return shutil.copytree(GOLDEN / "bwetaf_rope", tmp_path / "model")


def change(folder, **values):
    path = folder / CONFIG
    said = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in said.items() if v != "absent"}, indent=2))
    return folder


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [("max_len", -1, "context"), ("dropout_rate", 1.5, "dropout")],
)
def test_impossible_sizes_are_refused(folder, field, value, named):
    assert f"model.{named} must be" in refused(
        CORRUPT, bridge.open_checkpoint, change(folder, **{field: value})
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_logits(name):
    model, golden = bridge.load(GOLDEN / name), np.load(GOLDEN / name / "io.npz")
    logits, _ = model(jnp.asarray(golden["ids"]), mask=jnp.asarray(golden["mask"]))
    real = golden["mask"] == 1
    assert np.abs(np.asarray(logits) - golden["logits"])[real].max() <= 2e-5
    report = bridge.inspect(GOLDEN / name)
    assert (report.format, report.arch, report.problems) == ("bwetaf", "bwetaf", [])
    assert report.assumed == {"tokens": 101}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("by", ["safetensors", "orbax", "bwetaf"])
def test_there_and_back_is_the_same_file(tmp_path, name, by):
    bridge.convert(GOLDEN / name, tmp_path / "between", to=by, verify="roundtrip")
    bridge.convert(tmp_path / "between", tmp_path / "back", to="bwetaf", verify="logits")
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "back" / file).read_bytes() == (GOLDEN / name / file).read_bytes()
    assert bridge.verify(tmp_path / "back", against=GOLDEN / name).ok


@pytest.mark.parametrize("flash", ["use_flash_attention", "use_fash_attention"])
def test_keys_that_no_config_has_come_back(folder, tmp_path, flash):
    keys = {flash: True, "emb_splt": 7, "attn_chunks": 4, "possible_opt_path": "x"}
    change(folder, **keys, later_key=[1, {"a": None}])
    said = json.loads((folder / CONFIG).read_text())
    bridge.convert(folder, tmp_path / "between")
    bridge.convert(
        tmp_path / "between", tmp_path / "back", to="bwetaf", config={"residual_scale": 0.5}
    )
    found = json.loads((tmp_path / "back" / CONFIG).read_text())
    assert list(found) == list(said)
    assert found == {**said, "res_scale": 0.5}


def test_a_model_of_ours_gets_the_seeds_keys(tmp_path):
    params = random_params("bwetaf:tiny")
    bridge.convert(
        save_tree(tmp_path / "own", params), tmp_path / "out", to="bwetaf", config={"heads": (2, 4)}
    )
    golden = json.loads((GOLDEN / "bwetaf_rope" / CONFIG).read_text())
    said = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert list(said) == list(golden)
    assert (said["num_heads"], said["vocab_size"], said["use_rope"]) == ([2, 4], 64, True)
    source = bridge.open_checkpoint(tmp_path / "out")
    assert source.config.heads == (2, 4)
    tree = serialization.msgpack_restore((tmp_path / "out" / WEIGHTS).read_bytes())
    embedding = tree["params"]["emb"]["embedding"]
    np.testing.assert_array_equal(embedding, params["embed/embedding"])


def test_what_an_older_file_leaves_out(folder):
    change(folder, use_rope="absent", res_scale="absent", emb_init_range=None)
    config = bridge.open_checkpoint(folder).config
    assert (config.positions, config.residual_scale) == ("sinusoidal", 1.0)
    assert config.init_range == pytest.approx(32**-0.5)


def test_the_parameters_alone(folder, tmp_path):
    shutil.copyfile(folder / WEIGHTS, tmp_path / "anything")
    source = bridge.open_checkpoint(tmp_path / "anything", config={"heads": 4, "context": 32})
    assert (source.format, source.arch, source.config.hidden) == ("bwetaf", "bwetaf", 48)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ff_dim": 96}, "the config says hidden = 96, the tensors 48"),
        ({"num_blocks": 3}, "the config says layers = 3, the tensors 2"),
        ({"attention_dim": 64}, "the config says dim = 64, the tensors 32"),
        ({"vocab_size": 50260}, "the config says vocab = 50260, the tensors 101"),
    ],
)
def test_json_that_contradicts_the_tensors(folder, values, said):
    told = refused(MISMATCH, bridge.load, change(folder, **values))
    assert said in told
    if "ff_dim" in values:
        assert "blocks/0/mlp/out/kernel  (48, 32)" in told


@pytest.mark.parametrize(
    "values", [{"num_heads": 5}, {"num_heads": [2]}, {"num_heads": ["a"]}, {"use_rope": "yes"}]
)
def test_json_that_makes_no_model(folder, values):
    refused(CORRUPT, bridge.load, change(folder, **values))


def test_a_cut_file_says_so(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1000])
    told = refused(CORRUPT, bridge.load, folder)
    assert "truncated" in told
    assert WEIGHTS in told
    assert bridge.inspect(folder).format == "bwetaf"


def test_what_the_seed_cannot_compute_is_refused(folder, tmp_path):
    refused(
        MISMATCH,
        bridge.convert,
        folder,
        tmp_path / "out",
        to="bwetaf",
        config={"rotate_qk": True},
    )
    assert not (tmp_path / "out").exists()


def test_the_vocabulary_lies_beside_it(folder, tmp_path):
    file, size = tmp_path / "vocabulary.json", bridge.open_checkpoint(folder).config.vocab
    file.write_text(json.dumps(vocabulary(size)))
    report = bridge.convert(folder, tmp_path / "out", to="bwetaf", vocab=file)
    assert report.vocab_present
    assert report.files == ["characters.json", WEIGHTS, "manifest.json", CONFIG]
    assert bridge.open_checkpoint(tmp_path / "out").tokenizer.vocab_size == size
    assert bridge.inspect(tmp_path / "out").vocab_present


def seed_optimizer(folder, scale=1.0):
    """The seed's optimiser as it saves it, after one update; the state itself too."""
    params = serialization.msgpack_restore((folder / WEIGHTS).read_bytes())
    params = jax.tree.map(jnp.asarray, params)
    tx = optax.adamw(optax.linear_schedule(1e-3, 0.0, 100), b1=0.87)
    grads = jax.tree.map(lambda x: scale * x + 0.01, params)
    state = tx.update(grads, tx.init(params), params)[1]
    (folder / OPTIMIZER).write_bytes(serialization.to_bytes(state))
    return tx.init(params), state


@pytest.mark.slow
def test_moments_cross_and_come_back_byte_for_byte(folder, tmp_path):
    fresh, state = seed_optimizer(folder)
    found = load_moments(folder)
    assert found.count == 1
    held = state[0].mu["params"]["blocks_1"]["attn"]["d_out"]["b"]
    np.testing.assert_array_equal(found.mu["blocks/1/attn/proj/bias"].read(), held[0, 0])
    bridge.convert(folder, tmp_path / "between", optimizer=True)
    bridge.convert(tmp_path / "between", tmp_path / "back", to="bwetaf", optimizer=True)
    data = (tmp_path / "back" / OPTIMIZER).read_bytes()
    assert data == (folder / OPTIMIZER).read_bytes()
    restored = serialization.from_bytes(fresh, data)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), restored, state))


@pytest.mark.slow
def test_the_optimiser_of_another_model(folder, tmp_path):
    bridge.convert(
        save_tree(tmp_path / "own", random_params("bwetaf:tiny")),
        tmp_path / "other",
        to="bwetaf",
        config={"heads": 2},
    )
    seed_optimizer(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / OPTIMIZER, folder / OPTIMIZER)
    told = refused(MISMATCH, bridge.convert, folder, tmp_path / "out", optimizer=True)
    assert "another model" in told
    assert "emb.embedding: (64, 32), not (101, 32)" in told
    assert any("another model" in note for note in bridge.inspect(folder).notes)
    bridge.convert(folder, tmp_path / "out")


@pytest.mark.slow
def test_an_optimiser_that_is_not_adamw(folder):
    (folder / OPTIMIZER).write_bytes(serialization.to_bytes(optax.sgd(0.1).init({"a": 1.0})))
    assert "not AdamW" in refused(MISMATCH, load_moments, folder)
