"""Torch files that hold the config of transformers' class beside the model, as Lightning's do."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import bridge
from jaxmodels.errors import MISMATCH, Problem


def model(**changes):
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes | changes))


def saved(path, module, config, where="hyper_parameters"):
    """As Lightning saves a module whose model is `model`."""
    state = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": state, where: config, "epoch": 1}, path)
    return path


FORMS = {
    "object": lambda config: {"lr": 1e-3, "config": config},
    "dict": lambda config: {"lr": 1e-3, "model_config": config.to_dict()},
    "twice": lambda config: {"config": config, "args": {"cfg": config}},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_config_is_believed(tmp_path, form):
    module = model(activation_function="gelu")
    source = bridge.open_checkpoint(saved(tmp_path / "x.ckpt", module, FORMS[form](module.config)))
    assert (source.config.heads, source.config.gelu, source.config.context) == (4, "exact", 8)
    assert "heads" not in source.assumed


def test_the_config_at_the_top(tmp_path):
    module = model()
    source = bridge.open_checkpoint(saved(tmp_path / "x.pt", module, module.config, "config"))
    assert (source.config.heads, source.config.gelu) == (4, "tanh")


@pytest.mark.parametrize("changes", [{"activation_function": "relu"}, {"layer_norm_epsilon": 1e-3}])
def test_what_is_not_computed_is_refused_by_name(tmp_path, changes):
    module = model(**changes)
    with pytest.raises(Problem, match=next(iter(changes))) as caught:
        bridge.open_checkpoint(saved(tmp_path / "x.ckpt", module, {"config": module.config}))
    assert caught.value.exit_code == MISMATCH
    assert "nanoGPT" not in caught.value.what


def test_another_class_of_these_names_is_refused(tmp_path):
    module = model()
    config = module.config.to_dict() | {"model_type": "gpt_bigcode"}
    with pytest.raises(Problem, match="gpt_bigcode") as caught:
        bridge.open_checkpoint(saved(tmp_path / "x.ckpt", module, {"config": config}))
    assert caught.value.exit_code == MISMATCH


def test_another_config_beside_it_is_refused(tmp_path):
    module = model()
    path = saved(tmp_path / "x.ckpt", module, {"config": module.config})
    module.config.save_pretrained(tmp_path)
    assert bridge.open_checkpoint(path).config.heads == 4
    model(n_head=2).config.save_pretrained(tmp_path)
    with pytest.raises(Problem, match="not the config") as caught:
        bridge.open_checkpoint(path)
    assert (caught.value.exit_code, caught.value.why) == (MISMATCH, "heads = 4 and 2")
