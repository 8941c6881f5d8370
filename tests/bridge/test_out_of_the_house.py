"""Conversions for the seeds' own code and for transformers: vocabularies, towers, dtypes."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bridge
import jaxmodels
from bridge.core.tensors import DTYPES
from data_pipelines.pipelines import open_data
from data_pipelines.tokenizers import load_tokenizer
from jaxmodels.commands.initial import open_initial
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.paths import pattern, split
from tests.bridge.helpers import write_run
from tests.bridge.zips import STATE, params_of, seeds_loader

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


def set_in_config(run, **changes):
    """Changes config.json of a run, as if it had been trained so."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        config[name] = config[name] | value
    path.write_text(json.dumps(config))


def sgd_run(folder):
    run = write_run(folder, {}, spec="wigip:tiny")
    set_in_config(run, recipe={"optim": {"name": "sgd", "momentum": 0.0, "peak_lr": 1e-4}})
    step = write_run(folder.with_name("source"), {7: 2.0}, spec="wigip:tiny")
    (step / "checkpoints").rename(run / "checkpoints")
    (run / "checkpoints" / "7" / "manifest.json").unlink()
    from jaxmodels.runtime.manifest import write_manifest
    from jaxmodels.runtime.runs.rundir import identity

    about = {"step": 7, "metrics": {}, "run": identity(run)}
    write_manifest(run / "checkpoints" / "7", about)
    return run


@pytest.mark.slow
def test_an_sgd_run_goes_on_in_the_seeds_chain(tmp_path):
    report = bridge.convert(
        sgd_run(tmp_path / "run"), tmp_path / "out", to="wigip-zip", optimizer=True
    )
    assert any("count of updates" in note for note in report.notes)
    values = seeds_loader(tmp_path / "out" / "step_7.zip", tmp_path / "a")
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-4, 2000, 608_000, 1e-5)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule))
    params = params_of(values)
    updates, state = chain.update(params, values[STATE]["opt_state"], params)
    assert int(state[1][1].count) == 8
    norm = optax.global_norm(params)
    bias = np.asarray(params["Dense_0"]["bias"])
    np.testing.assert_allclose(
        updates["Dense_0"]["bias"], -bias / np.maximum(norm, 1) * 1e-4 * 7 / 2000, rtol=1e-4
    )


def test_adams_moments_are_refused_by_the_seeds_chain(tmp_path):
    run = write_run(tmp_path / "run", {7: 2.0}, spec="wigip:tiny")
    source = bridge.open_checkpoint(run)
    from bridge.core.moments import Moments
    from bridge.formats.wigip import carried

    with pytest.raises(Problem) as caught:
        carried(Moments(7, source.tensors, source.tensors), source.origin, run)
    assert caught.value.exit_code == MISMATCH
    assert "SGD" in caught.value.why
    with pytest.raises(Problem, match="no optimiser state"):
        bridge.convert(run, tmp_path / "out", to="wigip-zip", optimizer=True)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_vocabulary_of_the_seeds_code(tmp_path, prepared):
    (tmp_path / "t.txt").write_text(TEXT)
    options = {"context": 8, "batch": 2, "folder": tmp_path / "data"}
    if prepared:  # with <PAD> and <UNK>: another vocabulary, which must not be taken for it
        open_data(f"text:{tmp_path}/t.txt", **options)
        with pytest.raises(Exception, match="another vocabulary"):
            open_data(f"text:{tmp_path}/t.txt", tokenizer="bare-chars", **options)
        return
    data = open_data(f"text:{tmp_path}/t.txt", tokenizer="bare-chars", **options)
    assert "".join(data.tokenizer.chars) == "".join(sorted(set(TEXT)))
    assert data.vocab_size == len(set(TEXT))
    np.testing.assert_array_equal(
        data.tokens[:50], [sorted(set(TEXT)).index(char) for char in TEXT[:50]]
    )
    assert data.tokenizer.encode("€")[0] == 0
    data.tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).digest == data.tokenizer.digest


@pytest.mark.parametrize(("spec", "way"), [("bitgen_stage1", "size"), ("bitgen", "scale_offset")])
def test_a_published_tower_begins_a_model(tmp_path, spec, way):
    import torch

    state = published(tmp_path)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    arch, _, config, source = open_initial(
        str(tmp_path / "dinov2_vits14_pretrain.pth"), f"{spec}:tiny"
    )
    assert (arch, source.arch) == (spec, "dinov2")
    assert config.dinov2 == replace(source.config, interpolation=way)


def published(folder):
    """A state dict in the names of DINOv2's code."""
    import torch

    # Heads are 64 wide in all published files, which do not say it.
    config = replace(jaxmodels.arch("dinov2").PRESETS["tiny"], dim=64, heads=1)
    model = jaxmodels.arch("dinov2").Model(config, rngs=nnx.Rngs(0))
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(folder / "tower", nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    bridge.convert(
        folder / "tower", folder / "pth", to="dinov2-pth", config={"heads": config.heads}
    )
    return torch.load(folder / "pth" / "dinov2_pretrain.pth")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bitgen", "bitgen_stage1"])
def test_a_trained_tower_goes_to_transformers(tmp_path, arch):
    import torch
    from transformers import Dinov2Model

    run = write_run(tmp_path / "run", {7: 2.0}, spec=f"{arch}:tiny", vocab=False)
    bridge.convert(run, tmp_path / "out", to="dinov2", verify="roundtrip")
    config = bridge.open_checkpoint(run).config.dinov2
    side = config.image_size
    images = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype(np.float32)
    ours = bridge.load(run).vision(jnp.asarray(images))
    theirs = Dinov2Model.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        out = theirs(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert np.abs(np.asarray(ours) - out.last_hidden_state.numpy()).max() <= 1e-4
    report = bridge.verify(tmp_path / "out", against=run)
    assert (report.ok, report.tensors_equal) == (True, len(theirs.state_dict()))
    bridge.convert(run, tmp_path / "pth", to="dinov2-pth")
    named = torch.load(tmp_path / "pth" / "dinov2_pretrain.pth")
    assert torch.equal(named["norm.weight"], theirs.state_dict()["layernorm.weight"])


@pytest.mark.parametrize("arch", ["bitgen", "bitgen_stage1"])
def test_the_table_of_ternary_matrices_is_whole(arch):
    package = jaxmodels.arch(arch)
    model = package.Model(package.PRESETS["tiny"], rngs=nnx.Rngs(0))
    layers = {
        "/".join(map(str, path)) + "/kernel"
        for path, module in nnx.iter_modules(model)
        if type(module).__name__ == "BitLinear"
    }
    assert layers
    rows = [pattern(row) for row in package.TERNARY]
    found = {path for path in split(model)[1] if any(row.fullmatch(path) for row in rows)}
    assert found == layers


@pytest.mark.slow
def test_ternary_matrices_stay_as_they_are_unless_asked(tmp_path):
    run = write_run(tmp_path / "run", {7: 2.0}, spec="bitgen:tiny", vocab=False)
    report = bridge.convert(run, tmp_path / "out", dtype="bfloat16")
    kept = bridge.open_checkpoint(tmp_path / "out")
    kernel = "text/0/mlp/up/kernel"
    assert kept.tensors[kernel].dtype == np.float32
    assert kept.tensors["vision/blocks/0/attn/proj/kernel"].dtype == DTYPES["BF16"]
    assert any("ternary" in note for note in report.notes)
    assert "ternary" in (tmp_path / "out" / "README.md").read_text()
    bridge.convert(run, tmp_path / "all", dtype="bfloat16", keep_fp32="none")
    every = bridge.open_checkpoint(tmp_path / "all")
    assert every.tensors[kernel].dtype == DTYPES["BF16"]
    assert "ternary" not in (tmp_path / "all" / "README.md").read_text()


@pytest.mark.slow
def test_a_rounded_model_is_compared_with_the_source_as_it_was(tmp_path):
    run = write_run(tmp_path / "run", {7: 2.0})
    report = bridge.convert(run, tmp_path / "out", dtype="bfloat16", verify="logits")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 32), np.int32))
    ours, theirs = (bridge.load(path, dtype="float32") for path in (tmp_path / "out", run))
    apart = np.abs(np.asarray(ours(tokens)[0]) - np.asarray(theirs(tokens)[0])).max()
    assert apart > 1e-3
    assert report.max_abs_logit_diff_to_source == pytest.approx(apart, rel=1e-3)
    assert report.max_abs_logit_diff < 1e-4
