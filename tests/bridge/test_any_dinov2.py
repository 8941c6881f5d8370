"""Any DINOv2, in any form in which people have it: opens with transformers' features, or is
refused. More examples: EXAMPLES=500 python -m pytest tests/bridge/test_any_dinov2.py"""

import os

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import bridge
from bridge.formats import timm
from jaxmodels.errors import Problem

pytestmark = pytest.mark.usefixtures("readers_here")
EXAMPLES = int(os.environ.get("EXAMPLES", "2"))
FORMS = ["safetensors", "shards", "bin", "head", "fb", "chunked", "training", "lightning", "old",
         "timm"]  # fmt: skip


def made(heads, width, layers, registers, swiglu, head, seed):
    """A small DINOv2 of transformers with random weights, and the part of it that is the tower."""
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=heads * width, num_attention_heads=heads, num_hidden_layers=layers,
        use_swiglu_ffn=swiglu, image_size=28, patch_size=14, mlp_ratio=2, **sizes,
    )  # fmt: skip
    name = "ForImageClassification" if head else "Model"
    model = getattr(transformers, f"{kind}{name}")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model, getattr(model, model.base_model_prefix) if head else model


def published(tower):
    """The state dict under the names of DINOv2's own code."""
    state, found = tower.state_dict(), {}
    simple = {
        "embeddings.cls_token": "cls_token", "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed", "layernorm.weight": "norm.weight",
        "embeddings.register_tokens": "register_tokens", "layernorm.bias": "norm.bias",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    }  # fmt: skip
    for name, tensor in state.items():
        if name in simple:
            found[simple[name]] = tensor
            continue
        name = name.replace("encoder.layer.", "blocks.").replace("layer_scale", "ls")
        name = name.replace("lambda1", "gamma").replace("attention.o_proj", "attn.proj")
        name = name.replace("mlp.down_proj", "mlp.w3")
        for parts, whole in ((("q_proj", "k_proj", "v_proj"), "attn.qkv"),
                             (("gate_proj", "up_proj"), "mlp.w12")):  # fmt: skip
            part = next((part for part in parts if f".{part}." in name), None)
            if part:
                start, end = name.split(f".{part}.")
                start = start.rpartition(".")[0]
                name = f"{start}.{whole}.{end}"
                tensor = torch.cat([found[name], tensor]) if name in found else tensor
        found[name] = tensor
    return found


def as_timm(state):
    """The same as timm's filter makes it of the published file."""
    found = {name: tensor for name, tensor in state.items() if name != "mask_token"}
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return {n.replace("w12", "fc1").replace("w3", "fc2"): t for n, t in found.items()}


def write(folder, form, model, tower):
    """Writes the model in a form; gives what is opened."""
    path, state = folder / "x.pth", published(tower)
    if form in ("safetensors", "shards", "head", "bin"):
        model.save_pretrained(folder, max_shard_size="20KB" if form == "shards" else "1GB")
        if form == "bin":
            (folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return folder
    if form == "timm":
        state = {name: tensor.contiguous() for name, tensor in as_timm(state).items()}
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    if form == "chunked":
        state = {
            n.replace("blocks.", f"blocks.{i // 2}.", 1)
            if (i := int(n.split(".")[1]) if n.startswith("blocks.") else -1) >= 0
            else n: t
            for n, t in state.items()
        }
    if form == "training":
        student = {f"student.backbone.{n}": t + 1 for n, t in state.items()}
        teacher = {f"teacher.backbone.{n}": t for n, t in state.items()}
        state = {"model": student | teacher | {"teacher.dino_head.w": torch.ones(2)}}
    if form == "lightning":
        state = {f"model.backbone._orig_mod.{n}": t for n, t in state.items() if n != "mask_token"}
        state = {"state_dict": state | {"criterion.weight": torch.ones(2)}, "epoch": 1}
    torch.save(state, path, _use_new_zipfile_serialization=form != "old")
    return path


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    derandomize=EXAMPLES < 10, database=None,
)  # fmt: skip
@given(st.data())
@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_any_size_opens_with_transformers_features(form, tmp_path_factory, data):
    heads, width = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([4, 6, 8]))
    layers, registers = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([0, 0, 1, 4]))
    swiglu, half = data.draw(st.booleans()), data.draw(st.booleans())
    model, tower = made(
        heads, width, layers, registers, swiglu, form == "head", data.draw(st.integers(0, 99))
    )
    if half and form != "timm":  # which adds two rounded numbers
        model = model.bfloat16()
    path = write(tmp_path_factory.mktemp("x"), form, model, tower)
    # Images of the size that the positions were learned on: the forms differ in others.
    images = np.random.default_rng(0).standard_normal((1, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
        wanted = tower.float()(pixels).last_hidden_state.numpy()
    config = {} if path.is_dir() else {"heads": heads}
    opened = bridge.load(path, config=config, dtype="float32")
    assert np.abs(np.asarray(opened(jnp.asarray(images))) - wanted).max() < 1e-5 * max(
        1, np.abs(wanted).max()
    )


def test_a_mask_token_may_be_missing(tmp_path):
    _, tower = made(2, 4, 1, 0, False, False, 0)
    state = {n: t for n, t in published(tower).items() if n != "mask_token"}
    torch.save(state, tmp_path / "x.pth")
    source = bridge.open_checkpoint(tmp_path / "x.pth", config={"heads": 2})
    assert "mask_token is missing, on which no output depends: zeros" in source.notes
    assert not source.tensors["mask"].read().any()
    # timm's file may look the same.
    assert source.assumed["interpolation"] == "scale_offset"
    assert timm.MAYBE in source.notes
    torch.save(published(tower), tmp_path / "x.pth")
    assert timm.MAYBE not in bridge.open_checkpoint(tmp_path / "x.pth", config={"heads": 2}).notes


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 1])
@pytest.mark.parametrize("prefix", ["", "model.backbone."])
def test_transformers_names_without_a_config(tmp_path, registers, prefix):
    """Who wrote them interpolates positions as transformers does."""
    _, tower = made(2, 4, 1, registers, False, False, 0)
    state = {prefix + name: tensor.contiguous() for name, tensor in tower.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    way = "antialias" if registers else "size"
    report = bridge.inspect(tmp_path, config={"heads": 2})
    assert report.assumed == {"interpolation": way}
    images = np.random.default_rng(0).random((1, 70, 42, 3), np.float32)
    with torch.no_grad():
        wanted = tower(torch.from_numpy(images.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    model = bridge.load(tmp_path / "model.safetensors", config={"heads": 2})
    assert (
        np.abs(np.asarray(model(jnp.asarray(images))) - wanted).max() < 1e-5 * np.abs(wanted).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [('{"architecture": "vit_base_patch16_clip_224"}', "timm's vit_base_patch16_clip_224"),
     ('{"architecture": "vit_base_patch14_dinov2", "model_args": {"qk_norm": true}}', "qk_norm")],
)  # fmt: skip
def test_another_model_of_timm_is_refused(tmp_path, config, said):
    _, tower = made(2, 4, 1, 0, False, False, 0)
    save_file({n: t.contiguous() for n, t in as_timm(published(tower)).items()},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(Problem, match="timm") as caught:
        bridge.open_checkpoint(tmp_path)
    assert said in caught.value.what + caught.value.why
    assert caught.value.exit_code == 5
