"""Runs of `train --lora`, and adapters of PEFT: opened and converted."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, USAGE, Problem
from jaxmodels.recipe import Lora
from jaxmodels.runtime.lora import A, draw
from jaxmodels.runtime.manifest import write_manifest
from jaxmodels.runtime.paths import matrices, params_of, unstack
from jaxmodels.runtime.runs.rundir import identity
from jaxmodels.sizes import outline
from tests.bridge.helpers import flip, random_params, random_state, save_tree, sizes_of, write_run

LORA = "rank=2,alpha=6"


def lora_run(folder: Path, spec: str, text: str = LORA) -> Path:
    """A run of `train --lora` as it is on disk; adapters and base model are random."""
    start = write_run(folder / "start", {1: 1.0}, spec=spec)
    run = write_run(folder / "run", {}, spec=spec)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"recipe": {"lora": text}}))
    bridge.convert(start, run / "base", verify="none")
    step = run / "checkpoints" / "5"
    step.mkdir(parents=True)
    save_tree(step / "params", adapters_of(spec, text))
    rest = {f"rest/{path}": np.asarray(x) for path, x in random_state(spec, 1).items()}
    save_tree(step / "train", {"step": np.asarray(5), **rest})
    (step / "data.json").write_text("{}")
    write_manifest(step, {"step": 5, "metrics": {}, "run": identity(run)})
    return run


def adapters_of(spec: str, text: str) -> dict[str, np.ndarray]:
    package = jaxmodels.arch(spec.partition(":")[0])
    shapes = params_of(outline(package, sizes_of(spec)))
    drawn = jax.eval_shape(
        lambda key: draw(package, Lora.parse(text), shapes, key), jax.random.key(0)
    )
    rng = np.random.default_rng(7)
    return {path: rng.normal(size=x.shape).astype(np.float32) for path, x in drawn.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a wikigpt; not to be changed."""
    return lora_run(tmp_path_factory.mktemp("lora"), "wikigpt:tiny")


@pytest.fixture(scope="module")
def peft(run):
    """Its adapters, written for PEFT; not to be changed."""
    bridge.convert(run, run.parent / "peft", to="peft", verify="roundtrip")
    return run.parent / "peft"


def problem(call, *args, **named) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*args, **named)
    return caught.value


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(bridge.load(path)(jax.numpy.asarray(tokens))[0])


@pytest.mark.parametrize(
    "spec",
    [
        *(f"{arch}:tiny" for arch in ("charlm", "wikigpt", "bwetaf", "wigip")),
        pytest.param("bitgen:smallest", marks=pytest.mark.slow),
    ],
)
def test_any_model_opens_with_its_adapters_merged(tmp_path, spec):
    run = lora_run(tmp_path, spec)
    package, base = jaxmodels.arch(spec.partition(":")[0]), random_params(spec, seed=1)
    adapters = adapters_of(spec, LORA)
    wanted = dict(base)
    for path in base:
        if path + A in adapters:
            a, b = adapters[path + A], adapters[f"{path}_lora_b"]
            change = np.einsum("...ir,...ro->...io", a.astype(float), b.astype(float)) * 3
            wanted[path] = base[path] + change.reshape(base[path].shape)
    wanted = unstack(wanted, package.SCANNED)
    found = bridge.open_checkpoint(run).tensors
    assert len(adapters) // 2 >= 4
    for path, array in wanted.items():
        np.testing.assert_allclose(found[path].read(), array, atol=1e-5, err_msg=path)
    report = bridge.convert(run, tmp_path / "merged", verify="roundtrip")
    assert any("LoRA" in note for note in report.notes)
    merged = bridge.open_checkpoint(tmp_path / "merged").tensors
    assert all((merged[path].read() == found[path].read()).all() for path in found)


def test_peft_s_files_give_the_logits_of_the_merged_model(run, peft):
    """Unmerged: x A B is added to each module's output, as PEFT computes it."""
    from safetensors.torch import load_file

    config = json.loads((peft / "adapter_config.json").read_text())
    tensors = load_file(peft / "adapter_model.safetensors")
    model = GPT2LMHeadModel.from_pretrained(config["base_model_name_or_path"]).eval()
    scale = config["lora_alpha"] / config["r"]
    for name in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")

        def adapt(_, inputs, output, a=a, b=b):
            return output + scale * (inputs[0] @ a.T @ b.T)

        model.get_submodule(name).register_forward_hook(adapt)
    tokens = np.random.default_rng(0).integers(0, 60, (2, 12))
    with torch.no_grad():
        unmerged = model(torch.tensor(tokens)).logits.numpy()
    merged, base = (logits(path, tokens) for path in (run, run / "base"))
    assert np.abs(base - merged).max() > 0.1
    assert np.abs(unmerged - merged).max() < 1e-5 * np.abs(merged).max()
    again = bridge.open_checkpoint(peft)
    assert again.format == "peft"
    assert again.tokenizer is not None


def test_the_adapters_are_what_is_reported(run, peft, capsys):
    from safetensors import safe_open

    pairs = adapters_of("wikigpt:tiny", LORA)
    size = sum(array.size for array in pairs.values())
    report = bridge.convert(run, run.parent / "another", to="peft", dry_run=True)
    assert (report.tensors, report.parameters, report.bytes) == (16, size, 4 * size)
    assert main(["convert", str(run), str(run.parent / "another"), "--to", "peft"]) == DONE
    assert f"16 tensors, {size:,} parameters" in capsys.readouterr().out
    with safe_open(peft / "adapter_model.safetensors", "np") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.offset_keys()}
    assert {row["to"]: row["shape"] for row in report.plan} == stored
    assert {row["name"]: row["shape"] for row in bridge.inspect(peft).listing} == stored


def test_peft_opens_it(run, peft):
    library = pytest.importorskip("peft")
    model = library.AutoPeftModelForCausalLM.from_pretrained(peft).eval()
    tokens = np.random.default_rng(0).integers(0, 60, (2, 12))
    with torch.no_grad():
        unmerged = model(torch.tensor(tokens)).logits.numpy()
    merged = logits(run, tokens)
    assert np.abs(unmerged - merged).max() < 1e-5 * np.abs(merged).max()


def test_targets_may_be_some_matrices_only(tmp_path):
    text = f"{LORA},targets=blocks/*/attn/qkv/kernel|blocks/1/mlp/*"
    run = lora_run(tmp_path, "wikigpt:tiny", text)
    bridge.convert(run, tmp_path / "peft", to="peft", verify="roundtrip")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == [
        "transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn",
        "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj",
    ]  # fmt: skip


def test_what_peft_cannot_take(run, tmp_path):
    charlm = lora_run(tmp_path, "charlm:tiny")
    refused = problem(bridge.convert, charlm, tmp_path / "x", to="peft")
    assert refused.exit_code == USAGE
    assert "transformers, which has none for charlm" in refused.why
    assert "safetensors" in refused.fix
    refused = problem(bridge.convert, run / "base", tmp_path / "x", to="peft")
    assert "no LoRA adapters" in refused.what
    refused = problem(bridge.convert, run, tmp_path / "x", to="peft", dtype="bfloat16")
    assert "--dtype" in refused.what
    (tmp_path / "embedding").mkdir()
    embedding = lora_run(tmp_path / "embedding", "wikigpt:tiny", f"{LORA},targets=embed/*")
    refused = problem(bridge.convert, embedding, tmp_path / "x", to="peft")
    assert "embed/embedding" in refused.what
    assert not (tmp_path / "x").exists()


def test_a_base_that_changed(run, tmp_path):
    for file in ("model.safetensors", "manifest.json"):
        copy = tmp_path / file.partition(".")[0]
        shutil.copytree(run, copy)
        flip(copy / "base" / file)
        assert problem(bridge.load, copy).exit_code == CORRUPT, file


def test_a_base_in_the_place_of_another(run, peft, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    shutil.rmtree(moved / "base")
    start = write_run(tmp_path / "start", {9: 1.0}, spec="wikigpt:tiny")
    bridge.convert(start, moved / "base", verify="none")
    assert "base" in problem(bridge.open_checkpoint, moved).why
    # The same for PEFT's folder, which names its base by a path.
    adapters = tmp_path / "peft"
    shutil.copytree(peft, adapters)
    config = json.loads((adapters / "adapter_config.json").read_text())
    (adapters / "manifest.json").unlink()
    for base, code in ((moved / "base", CORRUPT), (tmp_path / "none", MISMATCH)):
        changed = config | {"base_model_name_or_path": str(base)}
        (adapters / "adapter_config.json").write_text(json.dumps(changed))
        assert problem(bridge.open_checkpoint, adapters).exit_code == code
    shutil.rmtree(moved / "base")
    assert problem(bridge.open_checkpoint, moved).exit_code == CORRUPT


def test_an_alpha_that_changed(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace("alpha=6", "alpha=7"))
    refused = problem(bridge.open_checkpoint, tmp_path / "run")
    assert refused.exit_code == CORRUPT
    assert "alpha=7" in refused.why


def test_a_checkpoint_outside_of_its_run(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "5", tmp_path / "5")
    refused = problem(bridge.open_checkpoint, tmp_path / "5")
    assert refused.exit_code == MISMATCH
    assert "base model is missing" in refused.what


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"alpha_pattern": {"c_attn": 3}},
        {"peft_type": "IA3"},
        {"modules_to_save": ["wte"]},
        {"init_lora_weights": "pissa_niter_4"},
        {"r": 3},
        {"r": True},
        {"lora_alpha": "16"},
    ],
)
def test_adapters_that_compute_something_else(peft, tmp_path, setting):
    adapters = tmp_path / "peft"
    shutil.copytree(peft, adapters)
    (adapters / "manifest.json").unlink()
    config = json.loads((adapters / "adapter_config.json").read_text())
    (adapters / "adapter_config.json").write_text(json.dumps(config | setting))
    refused = problem(bridge.open_checkpoint, adapters)
    assert refused.exit_code == MISMATCH
    assert "merge_and_unload" in refused.fix
    assert next(iter(setting)) in refused.why


def test_matrices_of_a_stack():
    assert matrices("blocks/attn/q/kernel", (3, 8, 2, 4)) == ((3,), 8, 8)
    assert matrices("blocks/attn/proj/kernel", (3, 2, 4, 8)) == ((3,), 8, 8)
    assert matrices("blocks/0/attn/qkv/kernel", (8, 24)) == ((), 8, 24)
    assert matrices("blocks/attn/q/bias", (3, 2, 4)) is None


def test_stacked_blocks_are_not_called_dropped(tmp_path):
    run = write_run(tmp_path / "run", {1: 1.0}, spec="wigip:tiny")
    assert not [note for note in bridge.open_checkpoint(run).notes if "dropped" in note]
