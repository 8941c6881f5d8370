"""The PyTorch side of bwetaf: numbers, transformers' calls, training."""

from dataclasses import asdict, replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
from bridge.torch.bwetaf.modeling_bwetaf import BwetafConfig, BwetafForCausalLM
from jaxmodels import bwetaf
from jaxmodels.runtime.paths import split
from tests.bridge.helpers import write_run
from tests.bridge.twins import (
    alone,
    check_cache_step_by_step,
    check_generation,
    check_left_padding,
    check_one_hundred_adamw_steps,
)

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other

TINY = bwetaf.PRESETS["tiny"]


def both(scale=0.3, **changes):
    """The model on both sides, with weights so large that every mistake shows."""
    from benchmarks.peers import twin_with

    config = replace(TINY, **changes)
    graphdef, params, rest = split(bwetaf.Model(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = {p: x + scale * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}
    return (graphdef, params, rest), twin_with("bwetaf", config, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory of the tiny preset."""
    folder = tmp_path_factory.mktemp("bwetaf")
    run = write_run(folder / "run", {7: None}, spec="bwetaf:tiny")
    bridge.convert(run, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def module(folder):
    return bridge.torch.load(folder)


@pytest.fixture(scope="module")
def tokens():
    return torch.from_numpy(np.random.default_rng(1).integers(0, 64, (3, 11)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"heads": (4, 2), "residual_scale": 0.9},
        {"rotate_qk": True},
        {"positions": "sinusoidal", "embed_scale": 1.5},
    ],
    ids=str,
)
def test_every_variant_gives_the_same_logits(changes, tokens):
    (graphdef, params, rest), module = both(scale=0.1, **changes)
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    ours = graphdef.merge(params, rest)(
        jnp.asarray(tokens.numpy(), jnp.int32), mask=jnp.asarray(mask.numpy(), jnp.int32)
    )[0]
    theirs = module(tokens, attention_mask=mask).logits.detach().numpy()
    assert np.abs(ours - theirs)[mask.numpy() == 1].max() <= 2e-5
    assert np.abs(ours).max() > 0.3


@pytest.mark.parametrize("prompt", [1, 11])
def test_generate_is_the_same_with_and_without_cache(module, tokens, prompt):
    check_generation(module, tokens[:, :prompt], 20)


def test_left_padding_changes_nothing(module, tokens):
    check_left_padding(module, tokens)


def test_cache_step_by_step_equals_one_pass(module, tokens):
    check_cache_step_by_step(module, tokens)


def test_embeddings_stand_in_for_ids_and_labels_may_be_left_out(module, tokens):
    rows = module.get_input_embeddings()(tokens)
    torch.testing.assert_close(module(inputs_embeds=rows).logits, module(tokens).logits)
    labels = tokens.clone()
    labels[:, 6:] = -100
    torch.testing.assert_close(
        module(tokens, labels=labels).loss, module(tokens[:, :6], labels=tokens[:, :6]).loss
    )


def test_gradient_checkpointing_changes_nothing(folder, tokens):
    module = bridge.torch.load(folder).train()
    gradients = []
    for again in (False, True):
        if again:
            module.gradient_checkpointing_enable()
        module.zero_grad()
        module(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    assert all(block.gradient_checkpointing for block in module.blocks)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_dropout_only_when_training(tokens):
    module = BwetafForCausalLM(BwetafConfig(**asdict(replace(TINY, dropout=0.5)))).eval()
    assert torch.equal(module(tokens).logits, module(tokens).logits)
    module.train()
    assert not torch.equal(module(tokens).logits, module(tokens).logits)


def test_more_rows_make_a_wider_head(folder):
    module = bridge.torch.load(folder)
    module.resize_token_embeddings(72)
    assert module(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 72)
    assert module.config.vocab == 72


def test_what_pytorch_trained_comes_back(folder, tmp_path):
    module = bridge.torch.load(folder)
    with torch.no_grad():
        module.blocks[1].mlp.out.bias += 1
    module.save_pretrained(tmp_path / "tuned")
    report = bridge.diff(folder, tmp_path / "tuned")
    changed = [path for path, row in report.tensors.items() if row["status"] != "equal"]
    assert (changed, report.config) == (["blocks/1/mlp/out/bias"], {})
    assert not bridge.open_checkpoint(tmp_path / "tuned").assumed


def test_head_counts_of_each_block_survive_the_folder(tmp_path, tokens):
    (graphdef, params, rest), module = both(scale=0.1, heads=(4, 2))
    module.save_pretrained(tmp_path)
    assert bridge.torch.load(tmp_path).config.heads == [4, 2]
    back = bridge.load(tmp_path)
    assert back.config == replace(TINY, heads=(4, 2))
    ids = jnp.asarray(tokens.numpy(), jnp.int32)
    np.testing.assert_array_equal(back(ids)[0], graphdef.merge(params, rest)(ids)[0])


@pytest.mark.slow
def test_a_folder_alone_opens_in_transformers(folder, module, tokens, tmp_path):
    code = f"""
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
ids = torch.tensor({tokens.tolist()})
model.save_pretrained("saved")
again = AutoModelForCausalLM.from_pretrained("saved", trust_remote_code=True)
result = [model(ids).logits.tolist(), again(ids).logits.tolist(), model.training]
"""
    logits, again, training = alone(code, tmp_path)
    assert np.abs(np.asarray(logits) - module(tokens).logits.detach().numpy()).max() <= 1e-6
    assert logits == again
    assert not training


@pytest.mark.slow
def test_one_hundred_adamw_steps():
    model, module = both(scale=0.05)
    settings = {"b1": 0.87, "b2": 0.94, "eps": 1e-6, "weight_decay": 0.1}
    check_one_hundred_adamw_steps(bwetaf.loss, model, module, **settings)
