"""wikigpt against transformers' own GPT-2: numbers, training, and what opens what."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import bridge
from bridge.core import table
from bridge.core.ops import OPS
from bridge.core.tensors import Tensor
from bridge.core.twins import twin
from bridge.torch.loading import state_dict
from jaxmodels.runtime.paths import params_of, split
from jaxmodels.wikigpt import PRESETS, WEIGHTS, Model, loss
from tests.bridge.helpers import assert_same_params, save_tree, write_run
from tests.bridge.twins import alone, check_one_hundred_adamw_steps

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture(scope="module", params=["exact", "tanh"])
def sides(request):
    """The same weights, large enough that every mistake shows, in JAX and in PyTorch."""
    config = replace(PRESETS["tiny"], gelu=request.param, hidden=96)
    graphdef, params, rest = split(Model(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = {p: x + 0.1 * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}
    return graphdef, params, rest, module_with(config, params)


def module_with(config, params):
    tensors = {
        path: Tensor(path, x.shape, x.dtype, lambda x=x: np.asarray(x))
        for path, x in params.items()
    }
    module = twin("wikigpt").build(config)
    module.load_state_dict(state_dict("wikigpt", config, tensors), strict=True)
    return module.eval()


@pytest.mark.slow
def test_logits_loss_and_gradients(sides):
    graphdef, params, rest, module = sides
    tokens = np.random.default_rng(1).integers(0, 64, (3, 32))
    value, grads = jax.value_and_grad(
        lambda p: loss(graphdef.merge(p, rest), {"tokens": jnp.asarray(tokens)}, None)[0]
    )(params)
    ids = torch.from_numpy(tokens)
    module.zero_grad()
    out = module(ids, labels=ids)
    logits = graphdef.merge(params, rest)(jnp.asarray(tokens))[0]
    assert np.abs(logits - out.logits.detach().numpy()).max() <= 2e-5
    assert float(value) == pytest.approx(out.loss.item(), abs=1e-5)
    out.loss.backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    pairs = table.pairs(WEIGHTS, grads)
    assert {pair.theirs for pair in pairs} == set(theirs)  # the tied head is no parameter
    for pair in pairs:
        gradient = OPS[pair.op].inverse(theirs[pair.theirs])
        assert np.abs(gradient - grads[pair.ours]).max() <= 1e-5, pair.ours


@pytest.mark.slow
def test_the_forms_of_gelu_are_told_apart(sides):
    graphdef, params, rest, module = sides
    other = {"exact": "tanh", "tanh": "exact"}[graphdef.merge(params, rest).config.gelu]
    wrong = Model(replace(PRESETS["tiny"], gelu=other, hidden=96), rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(1).integers(0, 64, (3, 32))
    logits = split(wrong)[0].merge(params, rest)(jnp.asarray(tokens))[0]
    assert np.abs(logits - module(torch.from_numpy(tokens)).logits.detach().numpy()).max() > 1e-4


@pytest.mark.slow
def test_one_hundred_adamw_steps(sides):
    graphdef, params, rest, _ = sides
    module = module_with(graphdef.merge(params, rest).config, params)
    settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    check_one_hundred_adamw_steps(loss, (graphdef, params, rest), module, **settings)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wikigpt")
    run = write_run(folder / "run", {3: None}, vocab=False, spec="wikigpt:tiny")
    bridge.convert(run, folder / "model", verify="logits")
    return folder / "model"


@pytest.mark.parametrize("auto", [GPT2LMHeadModel, AutoModelForCausalLM])
def test_a_directory_opens_in_transformers_unchanged(directory, auto):
    module, told = auto.from_pretrained(directory, output_loading_info=True)
    assert type(module) is GPT2LMHeadModel
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert module.lm_head.weight is module.transformer.wte.weight
    tokens = np.random.default_rng(1).integers(0, 64, (3, 32))
    logits = bridge.load(directory)(jnp.asarray(tokens))[0]
    assert np.abs(logits - module(torch.from_numpy(tokens)).logits.detach().numpy()).max() <= 2e-5


def test_the_loaded_module_keeps_its_tie(directory):
    module = bridge.torch.load(directory)
    assert module.lm_head.weight is module.transformer.wte.weight
    module.save_pretrained(directory.parent / "tuned")
    report = bridge.diff(directory, directory.parent / "tuned")
    assert all(row["status"] == "equal" for row in report.tensors.values())
    assert not report.config


@pytest.fixture(scope="module")
def without_biases(tmp_path_factory):
    """(model directory, the parameters it was made from) of a model that has no biases."""
    folder = tmp_path_factory.mktemp("nobias")
    config = replace(PRESETS["tiny"], bias=False)
    shapes = params_of(Model(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = {p: 0.2 * rng.standard_normal(x.shape, np.float32) for p, x in shapes.items()}
    save_tree(folder / "own", params)
    (folder / "own" / "config.json").write_text(json.dumps({"arch": "wikigpt", **asdict(config)}))
    report = bridge.convert(folder / "own", folder / "model", verify="logits")
    assert report.max_abs_logit_diff <= 1e-5
    (note,) = report.notes
    assert note.startswith("13 tensors of zeros added (2,432 bytes, not counted)")
    return folder / "model", params


def test_biases_of_zero_go_and_do_not_come_back(without_biases):
    folder, params = without_biases
    module, told = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    biases = [x for name, x in module.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 13
    assert not any(bias.any() for bias in biases)
    back = bridge.load(folder)
    assert not back.config.bias
    assert_same_params(back, params)


@pytest.mark.slow
def test_biases_that_pytorch_trained_are_kept(without_biases, tmp_path):
    folder, _ = without_biases
    module = bridge.torch.load(folder)
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.bias += 0.5
    module.save_pretrained(tmp_path / "tuned")
    source = bridge.open_checkpoint(tmp_path / "tuned")
    assert source.config == replace(PRESETS["tiny"], bias=True)
    assert "no longer" in source.notes[-1]
    tokens = np.random.default_rng(1).integers(0, 64, (3, 32))
    logits = bridge.load(tmp_path / "tuned")(jnp.asarray(tokens))[0]
    assert np.abs(logits - module(torch.from_numpy(tokens)).logits.detach().numpy()).max() <= 2e-5


@pytest.mark.slow
def test_folders_alone_open_in_transformers_and_generate(tmp_path):
    text = "a quick fox, äß!"
    run = write_run(tmp_path / "run", {1: 2.0}, spec="wikigpt:tiny")
    folders = [tmp_path / to for to in ("safetensors", "gpt2")]
    for folder in folders:
        bridge.convert(run, folder, to=folder.name)
    code = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
result = []
for path in {[str(folder) for folder in folders]!r}:
    model, tokenizer = (
        kind.from_pretrained(path) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = tokenizer({text!r}, return_tensors="pt").input_ids
    new = model.generate(ids, do_sample=False, max_new_tokens=8)
    result.append([type(model).__name__, ids.tolist(), new.tolist(), model(ids).logits.tolist()])
"""
    (tmp_path / "home").mkdir()
    both = alone(code, tmp_path / "home")
    model = bridge.load(run)
    tokenizer = bridge.open_checkpoint(run).tokenizer
    for name, ids, new, logits in both:
        assert name == "GPT2LMHeadModel"
        assert ids == [tokenizer.encode(text).tolist()]
        ours = np.asarray(model(jnp.asarray(ids))[0])
        assert np.abs(ours - np.asarray(logits)).max() <= 2e-5
        assert new[0][: len(ids[0])] == ids[0]
        assert len(new[0]) == len(ids[0]) + 8
    assert both[0] == both[1]


@pytest.mark.slow
def test_the_card_tells_architecture_numbers_origin_licence_and_loading(tmp_path):
    run = write_run(tmp_path / "run", {1: 2.0}, spec="wikigpt:tiny")
    bridge.convert(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    count = sum(tensor.size for tensor in bridge.open_checkpoint(run).tensors.values())
    for told in (
        "license: unknown",
        "tags: [wikigpt, jaxmodels]",
        f"A wikigpt model of {count:,} parameters, float32.",
        "| layers | 2 |",
        "from `run`, an orbax checkpoint, step 1, valid_loss 2.0000",
        "The licence is that of whoever trained it",
        "AutoModelForCausalLM.from_pretrained(",
        'bridge.load("PATH")',
    ):
        assert told in card, told
