"""A model inside something larger: under a key, a prefix, or beside another one."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

import bridge
from jaxmodels.errors import MISMATCH, USAGE, Problem
from tests.bridge.helpers import GOLDEN

pytestmark = pytest.mark.usefixtures("readers_here")
HEADS = {"heads": 2}


@pytest.fixture(scope="module")
def state():
    held = torch.load(GOLDEN.parent / "nanogpt_bias" / "ckpt.pt", weights_only=True)["model"]
    return OrderedDict((name.removeprefix("_orig_mod."), tensor) for name, tensor in held.items())


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def opened(tmp_path, value, **config):
    torch.save(value, tmp_path / "x.pt")
    return bridge.open_checkpoint(tmp_path / "x.pt", config={**HEADS, **config})


def same(source, state, name="transformer.wte.weight"):
    np.testing.assert_array_equal(source.tensors["embed/embedding"].read(), state[name].numpy())


def refused(exit_code, *arguments, **options):
    with pytest.raises(Problem) as caught:
        opened(*arguments, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.why, caught.value.fix])


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "net.", "_forward_module.", "module.model._orig_mod.", "a.b.c.",
     "_fsdp_wrapped_module._orig_mod.module.model.", "model._forward_module.net."],
)  # fmt: skip
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "module", "weights"])
def test_keys_and_prefixes_in_any_order(tmp_path, state, prefix, key):
    held = prefixed(prefix, state)
    value = held if key is None else {key: held, "epoch": 3, "optimizer": {"state": {}}}
    same(opened(tmp_path, value), state)


def test_an_optimiser_is_no_model(tmp_path, state):
    value = {"net": state, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    more = {"optimizer_averages": dict(state), "rng_state": torch.get_rng_state()}
    same(opened(tmp_path, value | more), state)


def test_what_lies_beside_it_is_left_out_and_told(tmp_path, state):
    beside = {"loss_fn.weight": torch.ones(3), "head.0.weight": torch.ones(2, 2)}
    source = opened(tmp_path, {"state_dict": prefixed("model.", state) | beside})
    same(source, state)
    assert "left out, as not part of the model: loss_fn.weight, head.0.weight" in source.notes
    assert "the model is under 'model'" in source.notes
    source = opened(tmp_path, dict(state) | {"loss.weight": torch.ones(3)})
    assert "left out, as not part of the model: loss.weight" in source.notes


def test_what_is_part_of_it_is_not_left_out(tmp_path, state):
    block = {"transformer.h.2.ln_1.weight": torch.ones(32)}
    assert "transformer.h.2" in refused(MISMATCH, tmp_path, prefixed("model.", {**state, **block}))
    inner = {"transformer.scale": torch.ones(1)}
    assert "transformer.scale" in refused(MISMATCH, tmp_path, prefixed("net.", {**state, **inner}))
    fewer = {n: t for n, t in state.items() if not n.startswith("transformer.h.0.")}
    assert "missing" in refused(MISMATCH, tmp_path, prefixed("model.", fewer))
    assert "lm_head.bias" in refused(MISMATCH, tmp_path, {**state, "lm_head.bias": torch.ones(97)})


def test_two_models_are_asked_about(tmp_path, state):
    other = OrderedDict((name, tensor + 1) for name, tensor in state.items())
    for value in (
        {"model": state, "ema": other},
        prefixed("model.", state) | prefixed("ema.", other),
    ):
        told = refused(MISMATCH, tmp_path, value)
        assert "holds 2 models" in told
        assert "--set model=model" in told
        same(opened(tmp_path, value, model="ema"), other)
        same(opened(tmp_path, value, model="model"), state)
        assert "no model 'x'" in refused(USAGE, tmp_path, value, model="x")


def test_it_does_not_matter_which_architectures_there_are(tmp_path, state, monkeypatch):
    import jaxmodels

    monkeypatch.setattr(jaxmodels, "ARCHS", ("wikigpt",))
    same(opened(tmp_path, prefixed("module.model.", state)), state)


def nanogpt_args(**changes):
    return {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 97} | changes


class GPTConfig:
    def __init__(self, **said):
        vars(self).update(said)


def test_build_nanogpt(tmp_path, state):
    value = {"model": state, "config": GPTConfig(**nanogpt_args()), "step": 5, "val_loss": 3.5}
    torch.save(value, tmp_path / "x.pt")
    source = bridge.open_checkpoint(tmp_path / "x.pt")
    assert (source.config.heads, source.config.gelu) == (2, "tanh")
    assert source.origin["step"] == 5
    # A loss that is a tensor lies beside what was read, and no model was left out with it.
    torch.save(value | {"val_loss": torch.tensor(3.5)}, tmp_path / "x.pt")
    source = bridge.open_checkpoint(tmp_path / "x.pt")
    assert not [note for note in source.notes if "left out" in note]
    assert source.origin["metrics"] == {"best_val_loss": 3.5}
    told = refused(MISMATCH, tmp_path, value | {"config": GPTConfig(**nanogpt_args(rope=True))})
    assert "rope" in told
    del value["step"]
    assert "gelu" in refused(MISMATCH, tmp_path, value)
    value["config"] = GPTConfig(**nanogpt_args(bias=True, dropout=0.0))
    assert opened(tmp_path, value).config.gelu == "exact"


@pytest.mark.parametrize("old", [False, True])
def test_the_optimisers_of_nanogpt(tmp_path, state, old):
    names = [name for name in state if name != "lm_head.weight"]
    if old:
        decays = [n for n in names if n.endswith("weight") and "wte" not in n and "wpe" not in n]
        decays = sorted(n for n in decays if "ln_" not in n)
        order = [decays, sorted(set(names) - set(decays))]
    else:
        order = [[n for n in names if state[n].dim() > 1], [n for n in names if state[n].dim() < 2]]
    made = {n: torch.nn.Parameter(state[n].clone()) for n in names}
    optimizer = torch.optim.AdamW([{"params": [made[n] for n in group]} for group in order])
    for number, name in enumerate(names):
        made[name].grad = torch.full_like(made[name], float(number + 1))
    optimizer.step()
    value = {"model": state, "optimizer": optimizer.state_dict(), "iter_num": 1}
    value["model_args"] = nanogpt_args(bias=True, dropout=0.0)
    moments = opened(tmp_path, value).moments()
    assert moments.count == 1
    embedding = moments.mu["embed/embedding"].read()
    np.testing.assert_allclose(embedding, 0.1 * (names.index("transformer.wte.weight") + 1), 1e-6)
    final = moments.mu["norm/bias"].read()
    np.testing.assert_allclose(final, 0.1 * (names.index("transformer.ln_f.bias") + 1), 1e-6)
