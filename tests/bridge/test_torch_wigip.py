"""The PyTorch side of wigip: numbers, transformers' calls, training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import bridge
from jaxmodels import wigip
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import generate
from jaxmodels.runtime.paths import split, unstack
from tests.bridge.helpers import write_run
from tests.bridge.twins import alone

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other

TINY = replace(wigip.PRESETS["tiny"], side=8, dim=32)
OBJECTIVES = ("next_char", "dense")


def both(objective, scale=0.1):
    """The model on both sides, with weights so large that every mistake shows."""
    from benchmarks.peers import twin_with

    config = replace(TINY, objective=objective)
    graphdef, params, rest = split(wigip.Model(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = {p: x + scale * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}
    return (graphdef, params, rest), twin_with("wigip", config, params)


def torch_loss(module, tokens):
    ids = torch.from_numpy(np.asarray(tokens)).long()
    if module.config.objective == "dense":  # 65 characters do not fit the grid of 64
        logits = module(ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return module(ids[:, :-1], labels=ids[:, -1]).loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wigip")
    run = write_run(folder / "run", {7: None}, spec="wigip:tiny")
    bridge.convert(run, folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_dense_logits_of_any_length_and_their_loss():
    (graphdef, params, rest), module = both("dense")
    model = graphdef.merge(params, rest)
    tokens = np.random.default_rng(1).integers(0, 64, (3, 41))
    ids = torch.from_numpy(tokens)
    out = module(ids, labels=ids)
    ours = model.logits(model.dense(jnp.asarray(tokens)))
    assert np.abs(ours - out.logits.detach().numpy()).max() <= 2e-5
    assert np.abs(ours).max() > 0.3
    value, _ = wigip.loss(model, {"tokens": jnp.asarray(tokens)}, None)
    assert float(value) == pytest.approx(out.loss.item(), abs=1e-5)
    ids = ids.clone()
    ids[:, 20:] = -100
    shorter = module(torch.from_numpy(tokens[:, :20]), labels=torch.from_numpy(tokens[:, :20]))
    assert module(torch.from_numpy(tokens), labels=ids).loss.item() == pytest.approx(
        shorter.loss.item(), abs=1e-5
    )


@pytest.mark.slow
def test_dense_gradients_are_the_same():
    from bridge.core import table
    from bridge.core.ops import OPS

    (graphdef, params, rest), module = both("dense")
    tokens = np.random.default_rng(1).integers(0, 64, (2, 65))
    grads = jax.grad(
        lambda p: wigip.loss(graphdef.merge(p, rest), {"tokens": jnp.asarray(tokens)}, None)[0]
    )(params)
    torch_loss(module, tokens).backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    ours = unstack(grads, wigip.SCANNED)
    for pair in table.pairs(wigip.WEIGHTS, ours):
        gradient = OPS[pair.op].inverse(theirs[pair.theirs]).reshape(ours[pair.ours].shape)
        assert np.abs(gradient - ours[pair.ours]).max() <= 1e-5, pair.ours


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_checkpointing_changes_nothing(objective):
    module = both(objective)[1].train()
    tokens = np.random.default_rng(1).integers(0, 64, (2, 65))
    gradients = []
    for again in (False, True):
        if again:
            module.gradient_checkpointing_enable()
        module.zero_grad()
        torch_loss(module, tokens).backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    assert all(block.gradient_checkpointing for block in module.blocks)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_another_number_of_characters_is_refused(folder):
    module = bridge.torch.load(folder)
    with pytest.raises(ValueError, match="255 characters, where the grid takes 256"):
        module(torch.zeros(1, 255, dtype=torch.long))


def test_what_pytorch_trained_comes_back(folder, tmp_path):
    module = bridge.torch.load(folder)
    with torch.no_grad():
        module.blocks[1].attn.q.bias += 1
    module.save_pretrained(tmp_path / "tuned")
    report = bridge.diff(folder, tmp_path / "tuned")
    changed = [path for path, row in report.tensors.items() if row["status"] != "equal"]
    assert (changed, report.config) == (["blocks/1/attn/q/bias"], {})
    assert not bridge.open_checkpoint(tmp_path / "tuned").assumed


@pytest.mark.slow
def test_a_folder_alone_opens_in_transformers(folder, tmp_path):
    tokens = np.random.default_rng(1).integers(0, 64, (2, 256))
    logits, again, training = alone(
        f"""
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
ids = torch.tensor({tokens.tolist()})
model.save_pretrained("saved")
again = AutoModel.from_pretrained("saved", trust_remote_code=True)
result = [model(ids).logits.tolist(), again(ids).logits.tolist(), model.training]
""",
        tmp_path,
    )
    ours = bridge.load(folder)(jnp.asarray(tokens))[0]
    assert np.abs(np.asarray(logits) - np.asarray(ours)).max() <= 1e-5
    assert logits == again
    assert not training


RULES = {
    "adamw": (
        optax.adamw(1e-3, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    ),
    "sgd": (optax.sgd(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "rule"), [("next_char", "sgd"), ("dense", "adamw")])
def test_one_hundred_steps(objective, rule):
    """The same weights and batches give the same losses on both sides."""
    (graphdef, params, rest), module = both(objective, scale=0.05)
    module.train()
    batches = np.random.default_rng(0).integers(0, 64, (100, 4, 65))
    transform, optimiser = RULES[rule][0], RULES[rule][1](module.parameters())

    @jax.jit
    def step(params, state, tokens):
        value, grads = jax.value_and_grad(
            lambda p: wigip.loss(graphdef.merge(p, rest), {"tokens": tokens}, None)[0]
        )(params)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, ours, theirs = transform.init(params), [], []
    for batch in batches:
        params, state, value = step(params, state, jnp.asarray(batch))
        ours.append(float(value))
        loss = torch_loss(module, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())
    assert np.abs(np.subtract(ours, theirs)).max() <= 1e-4
    assert np.ptp(ours) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["next_char", "dense"])
def test_it_generates_what_ours_does(objective):
    from bridge.torch.wigip.modeling_wigip import WigipForCausalLM

    (graphdef, params, rest), module = both(objective)
    causal = WigipForCausalLM(module.config).eval()
    causal.load_state_dict(module.state_dict())
    prompt = np.random.default_rng(0).integers(0, 64, (2, 60))
    ids = torch.from_numpy(prompt)
    out = causal.generate(ids, max_new_tokens=12, do_sample=False)  # over the end of the grid, 64
    ours = generate(graphdef.merge(params, rest), prompt, 12, Sampling(None))
    np.testing.assert_array_equal(out[:, 60:], np.concatenate(list(ours), axis=1))
    padded, mask = torch.nn.functional.pad(ids, (3, 0)), torch.ones(2, 63).long()
    mask[:, :3] = 0
    again = causal.generate(padded, attention_mask=mask, max_new_tokens=1, do_sample=False)
    np.testing.assert_array_equal(again[:, -1], out[:, 60])
