"""Settings that change a model's outputs and are easily overlooked are refused."""

import json

import numpy as np
import pytest
import torch

import bridge
from jaxmodels.errors import MISMATCH, Problem
from tests.bridge.helpers import save_tree, seed_tree

pytestmark = pytest.mark.usefixtures("readers_here")
ARGS = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 6, "vocab_size": 9, "bias": True,
        "dropout": 0.0}  # fmt: skip


def model(**more):
    """A GPT-2 under nanoGPT's names, kernels [out, in]."""
    sizes = {"attn.c_attn": (12, 4), "attn.c_proj": (4, 4), "mlp.c_fc": (16, 4)}
    sizes["mlp.c_proj"] = 4, 16
    state = {"wte.weight": torch.ones(9, 4), "wpe.weight": torch.ones(6, 4)}
    for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        state |= {f"{norm}.weight": torch.ones(4), f"{norm}.bias": torch.ones(4)}
    for name, shape in sizes.items():
        state |= {f"h.0.{name}.weight": torch.ones(shape), f"h.0.{name}.bias": torch.ones(shape[0])}
    return {f"transformer.{name}": x for name, x in state.items()} | more


def refused(path, match, **options):
    with pytest.raises(Problem, match=match) as caught:
        bridge.open_checkpoint(path, **options)
    assert caught.value.exit_code == MISMATCH


def saved(folder, value):
    torch.save(value, folder / "x.pt")
    return folder / "x.pt"


def test_frequencies_of_a_rotation_in_a_model_that_has_none(tmp_path):
    buffer = {"transformer.h.0.attn.inv_freq": torch.ones(1)}
    refused(saved(tmp_path, {"model": model(**buffer), "model_args": ARGS}), "does not fit")


def test_frequencies_of_another_base(tmp_path):
    tree = {f"{name}/value": array for name, array in seed_tree().items()}
    rate = 500_000 ** -(np.arange(4, dtype=np.float32) / 4)
    tree["layers/0/attn/rope/inv_freq/value"] = rate
    refused(save_tree(tmp_path / "state", tree), "inv_freq is frequencies .* base 10,000")


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (1, 1, 6, 6)])
def test_a_mask_of_any_form_must_be_causal(tmp_path, shape):
    mask = torch.ones(6, 6).tril()
    held = {"transformer.h.0.attn.bias": mask.view(shape)}
    bridge.open_checkpoint(saved(tmp_path, {"model": model(**held), "model_args": ARGS}))
    held = {"transformer.h.0.attn.bias": mask.triu(-2).view(shape)}
    refused(saved(tmp_path, {"model": model(**held), "model_args": ARGS}), "not the causal one")


def test_a_bias_is_no_mask(tmp_path):
    held = {"transformer.h.0.attn.bias": torch.ones(4)}
    refused(saved(tmp_path, {"model": model(**held), "model_args": ARGS}), "does not fit")


def test_arguments_are_found_as_deep_as_the_model(tmp_path):
    value = {"state": {"model": model(), "model_args": ARGS}}
    assert bridge.open_checkpoint(saved(tmp_path, value)).config.heads == 2
    value["state"]["model_args"] = ARGS | {"mup_width_multiplier": 2.0}
    refused(saved(tmp_path, value), "mup_width_multiplier", config={"heads": 2})


@pytest.mark.parametrize("key", ["use_rope", "n_kv_head", "mup_base", "n_experts", "qk_norm"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_trainers_settings_that_name_another_model(tmp_path, key, deep):
    settings = {**ARGS, "data_dir": "x", "num_workers": 3, key: 0}
    state = {f"model.{name}": x for name, x in model().items()}

    def value():
        return {
            "state_dict": state,
            "hyper_parameters": {"config": settings} if deep else settings,
        }

    assert (
        bridge.open_checkpoint(saved(tmp_path, value()), config={"gelu": "exact"}).config.heads == 2
    )
    settings[key] = 1
    refused(saved(tmp_path, value()), key)


@pytest.mark.parametrize("head", ["value_head", "reward_head", "classification_head"])
def test_a_head_beside_a_wrapped_model_is_left_out(tmp_path, head):
    state = {f"module.{name}": x for name, x in model().items()}
    state |= {f"module.{head}.weight": torch.ones(1, 4), f"{head}.bias": torch.ones(1)}
    source = bridge.open_checkpoint(saved(tmp_path, {"model": state, "model_args": ARGS}))
    assert f"left out: {head}.weight, a head for another task" in source.notes


def test_a_key_of_a_class_that_is_not_transformers(tmp_path):
    """transformers passes over what its class does not read; another class may read it."""
    turned = {n: x.T.contiguous() if x.ndim == 2 and ".c_" in n else x for n, x in model().items()}
    torch.save(turned, tmp_path / "pytorch_model.bin")
    config = {"model_type": "gpt2", "n_head": 2, "alibi": True}
    for name in ("GPT2LMHeadModel", "MyGPT2Model"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        if name == "GPT2LMHeadModel":
            assert any("alibi" in note for note in bridge.open_checkpoint(tmp_path).notes)
        else:
            refused(tmp_path, "alibi = True")


def test_a_bias_of_the_language_models_head_is_refused(tmp_path):
    held = model(**{"lm_head.bias": torch.ones(9)})
    refused(saved(tmp_path, {"model": held, "model_args": ARGS}), "does not fit")
