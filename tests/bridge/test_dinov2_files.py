"""DINOv2's two kinds of files, there and back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

import bridge
from bridge.core import fused_tensors
from bridge.core.tensors import Tensor
from bridge.storage.safetensors_reader import read_sharded
from jaxmodels.dinov2 import PRESETS, Model
from jaxmodels.errors import CORRUPT, MISMATCH, USAGE, Problem
from jaxmodels.runtime.paths import params_of
from tests.bridge.helpers import assert_same_params, command, save_tree

INDEX = "model.safetensors.index.json"
HEADS = {"heads": 4}
both = pytest.mark.parametrize("name", ["dinov2", "dinov2_reg"])


def published(golden: Path, name: str) -> dict[str, torch.Tensor]:
    """The published code's state dict, in its order."""
    found = read_sharded(golden / name / "fb" / INDEX)
    return {n: torch.from_numpy(tensor.read()) for n, tensor in found.items()}


def saved(golden: Path, name: str) -> dict[str, np.ndarray]:
    """What lies in transformers' files."""
    return {n: t.read() for n, t in read_sharded(golden / name / "hf" / INDEX).items()}


@pytest.fixture
def pth(golden, tmp_path):
    """(fixture) → the `.pth` file that it was."""

    def write(name: str) -> Path:
        torch.save(published(golden, name), tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    return write


def same(a: dict, b: dict) -> None:
    """The same names in the same order, shapes, dtypes and bits."""
    assert list(a) == list(b)
    for name in a:
        assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype), name
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
@both
def test_the_published_file_comes_back_as_it_was(golden, pth, tmp_path, name):
    source = pth(name)
    for to in ("safetensors", "dinov2", "orbax"):
        bridge.convert(source, tmp_path / to, to=to, config=HEADS, verify="roundtrip")
        report = bridge.convert(
            tmp_path / to, tmp_path / f"{to}-pth", to="dinov2-pth", verify="logits"
        )
        assert report.max_abs_logit_diff <= 1e-5
        file = tmp_path / f"{to}-pth" / "dinov2_pretrain.pth"
        same(torch.load(file, weights_only=True), published(golden, name))
        assert report.notes == ["dinov2-pth cannot store heads = 4"]


@pytest.mark.slow
@both
@pytest.mark.parametrize("to", ["dinov2", "safetensors"])
def test_transformers_opens_what_is_written(golden, tmp_path, name, to):
    import transformers

    kind = "Dinov2WithRegistersModel" if "reg" in name else "Dinov2Model"
    source = golden / name / "hf"
    report = bridge.convert(source, tmp_path / "out", to=to, verify="logits", max_shard_size="9kB")
    assert report.assumed == {}
    assert report.vocab_present is None
    assert not any("interpolat" in note for note in report.notes)
    for cls in (getattr(transformers, kind), transformers.AutoModel):
        module, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info.values())
        with np.load(golden / name / "hf_io.npz") as io, torch.no_grad():
            out = module(torch.from_numpy(io["x_84x98"])).last_hidden_state.numpy()
            assert np.abs(out - io["last_84x98"]).max() <= 5e-5
    found = {n: t.read() for n, t in read_sharded(tmp_path / "out" / INDEX).items()}
    expected = saved(golden, name)
    same({n: found[n] for n in sorted(found)}, {n: expected[n] for n in sorted(expected)})
    if to == "dinov2":
        was = json.loads((source / "config.json").read_text())
        assert json.loads((tmp_path / "out" / "config.json").read_text()) == was
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)


@pytest.mark.slow
@both
def test_transformers_5_names_and_torch_files_are_the_same_model(golden, tmp_path, name):
    source = golden / name / "hf"
    params = {path: np.asarray(a) for path, a in params_of(bridge.load(source)).items()}
    module = bridge.torch.load(source)
    state = {n: tensor.detach() for n, tensor in module.state_dict().items()}
    assert any(".attention.q_proj." in n for n in state)

    def folder(label: str) -> Path:
        (tmp_path / label).mkdir()
        shutil.copy(source / "config.json", tmp_path / label)
        return tmp_path / label

    new = folder("new")
    save_file({n: tensor.numpy() for n, tensor in state.items()}, new / "model.safetensors")
    assert_same_params(bridge.load(new), params)
    old = {n: torch.from_numpy(array) for n, array in saved(golden, name).items()}
    for label, held in (("bin-4", old), ("bin-5", state)):
        torch.save(held, folder(label) / "pytorch_model.bin")
        assert_same_params(bridge.load(tmp_path / label), params)
    sharded, names = folder("sharded"), list(old)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, those in shards.items():
        torch.save({n: old[n] for n in those}, sharded / file)
    index = {"weight_map": {n: file for file, those in shards.items() for n in those}}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_params(bridge.load(sharded), params)
    assert bridge.inspect(sharded).format == "dinov2"
    (sharded / "b.bin").unlink()
    with pytest.raises(Problem, match="shards are missing") as caught:
        bridge.load(sharded)
    assert caught.value.exit_code == CORRUPT


@pytest.mark.slow
@both
def test_chunks_and_teachers_are_the_same_model(golden, pth, tmp_path, name):
    params = {p: np.asarray(a) for p, a in params_of(bridge.load(pth(name), config=HEADS)).items()}
    state = published(golden, name)

    def chunked(key: str) -> str:
        if not key.startswith("blocks."):
            return key
        return key.replace("blocks.", f"blocks.{int(key.split('.')[1]) // 2}.")

    chunks = {chunked(key): tensor for key, tensor in state.items()}
    assert "blocks.1.2.norm1.bias" in chunks
    backbone = {f"backbone.{key}": tensor for key, tensor in chunks.items()}
    head = {"dino_head.mlp.0.weight": torch.ones(3, 2)}
    for value in (chunks, {"teacher": backbone | head}, backbone, {"model": state}):
        torch.save(value, tmp_path / "a.pth")
        assert_same_params(bridge.load(tmp_path / "a.pth", config=HEADS), params)
        assert bridge.inspect(tmp_path / "a.pth", config=HEADS).format == "dinov2-pth"
    torch.save({"teacher": backbone | head}, tmp_path / "a.pth")
    notes = bridge.inspect(tmp_path / "a.pth", config=HEADS).notes
    assert "left out, as not part of the model: dino_head.mlp.0.weight" in notes
    assert "the blocks lie in chunks, which are not kept" in notes
    clash = {key.replace("blocks.1.2.", "blocks.1.0."): t for key, t in chunks.items()}
    torch.save(clash, tmp_path / "a.pth")
    with pytest.raises(Problem, match="same number"):
        bridge.load(tmp_path / "a.pth")


def test_what_a_file_does_not_say_is_told(golden, pth, tmp_path, capsys):
    with pytest.raises(Problem, match="heads"):  # the published are 64 wide
        bridge.convert(pth("dinov2"), tmp_path / "out")
    report = bridge.convert(pth("dinov2"), tmp_path / "out", config=HEADS)
    assert report.assumed == {"interpolation": "scale_offset"}
    assert "assumed: interpolation = scale_offset" in report.notes
    assert any("'size', this model by 'scale_offset'" in note for note in report.notes)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "by 'size', this model by 'scale_offset'" in card
    assert "vocabulary" not in card
    code, out, _ = command(
        capsys, "convert", tmp_path / "dinov2.pth", tmp_path / "two", "--set", "heads=4",
        "--set", "interpolation=size", "--to", "dinov2", "--json",
    )  # fmt: skip
    assert code == 0
    assert out["assumed"] == {}
    assert not any("interpolat" in note for note in out["notes"])
    assert bridge.load(tmp_path / "two").config.heads == 4


@pytest.mark.slow
def test_another_interpolation_survives_a_transformers_folder(pth, tmp_path):
    bridge.convert(pth("dinov2"), tmp_path / "hf", to="dinov2", config=HEADS, verify="logits")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["interpolation"] == "scale_offset"
    assert "arch" not in config
    assert bridge.load(tmp_path / "hf").config.interpolation == "scale_offset"
    config.pop("interpolation")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf" / "manifest.json").unlink()
    assert bridge.load(tmp_path / "hf").config.interpolation == "size"


@pytest.mark.slow
@both
def test_verify_inspect_and_diff(golden, pth, tmp_path, name):
    source = pth(name)
    bridge.convert(source, tmp_path / "out", config=HEADS)
    report = bridge.verify(tmp_path / "out", against=source, gradients=True)
    assert report.ok, report.problems
    assert report.digests_ok
    assert report.tensors_compared == report.tensors_equal == (68 if "reg" in name else 61)
    assert report.max_abs_logit_diff <= 1e-5
    assert report.max_abs_logit_diff_to_source == 0
    assert report.max_gradient_diff <= 1e-4
    found = bridge.inspect(source, config=HEADS)
    assert (found.format, found.arch, found.preset) == ("dinov2-pth", "dinov2", None)
    assert found.tensors == report.tensors_compared
    assert not any("vocabulary" in note for note in found.notes)
    assert "blocks.0.attn.qkv.weight" in {row["name"] for row in found.listing}
    assert bridge.inspect(golden / name / "hf").config["heads"] == 4


@pytest.mark.slow
def test_bfloat16_and_a_dry_run(pth, tmp_path):
    calls = {"to": "dinov2-pth", "dtype": "bfloat16", "keep_fp32": "none", "config": HEADS}
    bridge.convert(pth("dinov2_reg"), tmp_path / "half", **calls)
    state = torch.load(tmp_path / "half" / "dinov2_pretrain.pth", weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert bridge.load(tmp_path / "half", config=HEADS).pos.dtype == "bfloat16"
    # Norms and gates stay float32, and with a gate's bias the other part of the same tensor.
    calls = {"dtype": "bfloat16", "verify": "roundtrip", "config": HEADS}
    bridge.convert(pth("dinov2_reg"), tmp_path / "most", **calls)
    kept = [row for row in bridge.inspect(tmp_path / "most").listing if "scale" in row["name"]]
    assert len(kept) == 2 * bridge.load(tmp_path / "most").config.layers
    assert {row["dtype"] for row in kept} == {"float32"}
    source = tmp_path / "dinov2_reg.pth"
    plan = bridge.convert(source, tmp_path / "no", dry_run=True, config=HEADS).plan
    rows = {(row["from"], row["to"], tuple(row["shape"])) for row in plan}
    assert (
        "blocks.2.mlp.w12.weight[1]",
        "encoder.layer.2.mlp.weights_in.weight[1]",
        (128, 48),
    ) in rows
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "exit_code"),
    [
        ({"hidden_act": "relu"}, MISMATCH),
        ({"layer_norm_eps": 1e-5}, MISMATCH),
        ({"qkv_bias": False}, MISMATCH),
        ({"num_hidden_layers": 4}, MISMATCH),
        ({"hidden_size": 64}, MISMATCH),
        ({"num_attention_heads": 5}, CORRUPT),
        ({"num_attention_heads": "4"}, CORRUPT),
        ({"interpolation": "nearest"}, CORRUPT),
        ({"model_type": "dinov2_with_registers"}, MISMATCH),
        ({"use_swiglu_ffn": True}, MISMATCH),
    ],
)
def test_a_config_that_asks_for_another_model_is_refused(golden, tmp_path, change, exit_code):
    shutil.copytree(golden / "dinov2" / "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | change
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Problem) as caught:
        bridge.load(tmp_path / "hf")
    assert caught.value.exit_code == exit_code


def test_a_folder_without_weights(golden, tmp_path):
    shutil.copy(golden / "dinov2" / "hf" / "config.json", tmp_path)
    with pytest.raises(Problem, match="no weights") as caught:
        bridge.load(tmp_path)
    assert caught.value.exit_code == CORRUPT


def test_missing_and_strange_tensors_are_named(golden, tmp_path):
    state = published(golden, "dinov2")
    for change, name in (
        ({"blocks.1.attn.qkv.weight": None}, "blocks.1.attn.qkv.weight[2]"),
        ({"blocks.1.attn.qkv.bias": torch.zeros(10)}, "blocks.1.attn.qkv.bias"),
        ({"stranger.weight": torch.zeros(3, 3)}, "stranger.weight"),
    ):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        torch.save(changed, tmp_path / "a.pth")
        with pytest.raises(Problem) as caught:
            bridge.load(tmp_path / "a.pth", config=HEADS)
        assert caught.value.exit_code == MISMATCH
        assert name in caught.value.why


@pytest.mark.slow
def test_a_width_that_transformers_cannot_hold(tmp_path):
    odd = Model(replace(PRESETS["tiny"], hidden=100), rngs=nnx.Rngs(0))
    folder = save_tree(tmp_path / "tree", {p: np.asarray(a) for p, a in params_of(odd).items()})
    with pytest.raises(Problem, match="cannot hold a feed-forward of width 100") as caught:
        bridge.convert(folder, tmp_path / "out", config=HEADS)
    assert caught.value.exit_code == MISMATCH
    assert not (tmp_path / "out").exists()
    bridge.convert(folder, tmp_path / "pth", to="dinov2-pth", verify="roundtrip", config=HEADS)


def test_only_dinov2_becomes_dinov2(golden, tmp_path):
    with pytest.raises(Problem, match="is for dinov2") as caught:
        bridge.convert(golden / "charlm" / "orbax", tmp_path / "out", to="dinov2")
    assert caught.value.exit_code == USAGE


ROWS = (
    ("a", "x.{i}.qkv[0]", "same"),
    ("b", "x.{i}.qkv[1]", "same"),
    ("c", "x.{i}.qkv[2]", "same"),
    ("d", "y", "same"),
)


def tensor(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name, array.shape, array.dtype, lambda: array)


def test_parts_are_cut_and_joined():
    array = np.arange(24).reshape(6, 4)
    held = {"x.3.qkv": tensor("x.3.qkv", array), "y": tensor("y", array)}
    cut = fused_tensors.split(ROWS, held)
    assert list(cut) == ["x.3.qkv[0]", "x.3.qkv[1]", "x.3.qkv[2]", "y"]
    np.testing.assert_array_equal(cut["x.3.qkv[1]"].read(), array[2:4])
    back = fused_tensors.join(dict(reversed(cut.items())))
    assert list(back) == ["y", "x.3.qkv"]
    assert back["x.3.qkv"].shape == (6, 4)
    np.testing.assert_array_equal(back["x.3.qkv"].read(), array)


@pytest.mark.parametrize("shape", [(), (7, 3), (0,)])
def test_what_cannot_be_cut_stays_whole_or_is_empty(shape):
    found = fused_tensors.split(ROWS, {"x.0.qkv": tensor("x.0.qkv", np.zeros(shape))})
    whole = shape != (0,)
    assert list(found) == (["x.0.qkv"] if whole else [f"x.0.qkv[{i}]" for i in range(3)])
