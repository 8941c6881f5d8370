"""Weights that are not stored as their model uses them are refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import bridge
from jaxmodels.errors import MISMATCH, Problem

pytestmark = pytest.mark.usefixtures("readers_here")


@pytest.fixture(scope="module")
def state():
    config = GPT2Config(vocab_size=23, n_positions=8, n_embd=12, n_layer=1, n_head=3)
    return dict(GPT2LMHeadModel(config).state_dict())


NAME = "transformer.h.0.attn.c_attn"
LORA = {f"{NAME}.lora_{side}.default.weight": torch.ones(4, 12) for side in "AB"}
KEPT = {
    "an adapter": lambda w: LORA,
    "an adapter within the layer": lambda w: {f"{NAME}.base_layer.weight": w, **LORA},
    "a mask of torch's pruning": lambda w: {
        f"{NAME}.weight_orig": w, f"{NAME}.weight_mask": torch.zeros_like(w)},
    "a mask beside the weight": lambda w: {f"{NAME}.weight_mask": torch.zeros_like(w)},
    "weight_norm": lambda w: {f"{NAME}.weight_v": w, f"{NAME}.weight_g": torch.ones(12, 1)},
    "parametrizations": lambda w: {f"{NAME}.parametrizations.weight.original": w},
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_the_cause_is_named(tmp_path, state, kind, prefix):
    added = KEPT[kind](state[f"{NAME}.weight"])
    held = {**state, **added}
    if any("weight" in name and "lora" not in name and "mask" not in name for name in added):
        del held[f"{NAME}.weight"]
    torch.save({prefix + name: x for name, x in held.items()}, tmp_path / "m.pt")
    with pytest.raises(Problem, match="not stored as the model uses them") as caught:
        bridge.open_checkpoint(tmp_path / "m.pt", config={"heads": 3, "gelu": "tanh"})
    assert caught.value.exit_code == MISMATCH
    assert "remove" not in caught.value.fix.replace("remove_", "")


def test_what_lies_beside_the_model_may_be_so(tmp_path, state):
    beside = {"loss.weight_g": torch.ones(3), "discriminator.0.weight_orig": torch.ones(3)}
    torch.save({**{f"model.{n}": x for n, x in state.items()}, **beside}, tmp_path / "m.pt")
    source = bridge.open_checkpoint(tmp_path / "m.pt", config={"heads": 3, "gelu": "tanh"})
    assert any("left out" in note for note in source.notes)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_alone(tmp_path, config):
    held = {f"base_model.model.{name}": x for name, x in LORA.items()}
    save_file(held, tmp_path / "adapter_model.safetensors")
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(Problem, match="adapter") as caught:
            bridge.open_checkpoint(path)
        assert caught.value.exit_code == MISMATCH
        assert "merge_and_unload" in caught.value.fix
