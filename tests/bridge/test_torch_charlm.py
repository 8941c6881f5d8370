"""The PyTorch side of charlm: numbers, transformers' calls, training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import bridge
import jaxmodels
from bridge.core import table
from bridge.core.twins import twin
from bridge.formats.tokenizer import write_tokenizer
from bridge.torch.charlm.modeling_charlm import CharLMConfig, CharLMForCausalLM
from data_pipelines.tokenizers import CharTokenizer
from jaxmodels.charlm import PRESETS, WEIGHTS, loss
from jaxmodels.runtime.paths import split
from tests.bridge.helpers import GOLDEN, HEADS, SEED, random_params, save_tree, vocabulary
from tests.bridge.twins import (
    alone,
    check_cache_step_by_step,
    check_generation,
    check_left_padding,
    check_one_hundred_adamw_steps,
)

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture(scope="module")
def module(model_directory):
    return bridge.torch.load(model_directory)


@pytest.fixture(scope="module")
def tokens():
    return torch.from_numpy(np.random.default_rng(1).integers(2, 64, (3, 11)))


def test_golden_logits_loss_and_gradient():
    golden = np.load(GOLDEN / "io.npz")
    module = bridge.torch.load(SEED, config=HEADS)
    ids = torch.from_numpy(golden["ids"]).long()
    out = module(ids, labels=ids)
    assert np.abs(out.logits.detach().numpy() - golden["logits"]).max() <= 2e-5
    assert abs(out.loss.item() - golden["loss"]) <= 1e-5
    out.loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
    assert norm.item() == pytest.approx(float(golden["gradnorm"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [1, 11])
def test_generate_is_the_same_with_and_without_cache(module, tokens, prompt):
    check_generation(module, tokens[:, :prompt], 25)


def test_left_padding_changes_nothing(module, tokens):
    check_left_padding(module, tokens)


def test_cache_step_by_step_equals_one_pass(module, tokens):
    check_cache_step_by_step(module, tokens)


def test_dropout_only_when_training_and_decaying():
    config = CharLMConfig(**vars(replace(PRESETS["tiny"], dropout=0.5, dropout_end=0.1)))
    config.dropout_scale = 2
    module, ids = CharLMForCausalLM(config).eval(), torch.ones(1, 5, dtype=torch.long)
    assert torch.equal(module(ids).logits, module(ids).logits)
    module.train()
    rates = []
    for _ in range(3):
        module(ids)
        rates.append(float(module.dropout_rate()))
    assert rates == pytest.approx([0.5, 0.1 + 0.4 / 1.5, 0.3])
    assert not torch.equal(module(ids).logits, module(ids).logits)


def decaying() -> CharLMForCausalLM:
    config = replace(PRESETS["tiny"], dropout=0.5, dropout_end=0.1, dropout_scale=2)
    return CharLMForCausalLM(CharLMConfig(**vars(config))).train()


def test_a_rate_that_is_a_tensor_drops_as_many_and_keeps_the_mean():
    from bridge.torch.charlm.modeling_charlm import dropout

    torch.manual_seed(0)
    out = dropout(torch.ones(400, 400), torch.tensor(0.3))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert out.max().item() == pytest.approx(1 / 0.7)
    assert dropout(torch.ones(9, dtype=torch.bfloat16), torch.tensor(0.3)).dtype == torch.bfloat16


def test_decaying_dropout_is_compiled_once():
    from torch._dynamo.testing import CompileCounter

    module, counter = decaying(), CompileCounter()
    compiled, ids = torch.compile(module, backend=counter), torch.ones(2, 5, dtype=torch.long)
    for _ in range(4):
        compiled(ids, labels=ids).loss.backward()
    assert int(module.steps) == 4
    assert counter.frame_count == 1


def test_counting_starts_at_zero_and_is_not_saved(tmp_path):
    module = decaying()
    module(torch.ones(1, 5, dtype=torch.long))
    module.save_pretrained(tmp_path)
    again = CharLMForCausalLM.from_pretrained(tmp_path)
    assert (int(module.steps), int(again.steps)) == (1, 0)
    assert "steps" not in module.state_dict()
    assert torch.equal(again.head.weight, module.head.weight)


def test_gradient_checkpointing_changes_no_gradient(tokens):
    """With dropout, so that the second forward pass must draw what the first one drew."""
    module, calls, gradients = decaying(), [], []
    mlp = module.blocks[0].mlp
    mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            module.gradient_checkpointing_enable()
            assert module.is_gradient_checkpointing
        torch.manual_seed(0)
        module.steps.zero_()
        module.zero_grad()
        module(tokens, labels=tokens, use_cache=True).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in module.named_parameters()})
    assert len(calls) == 1 + 2
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    module.gradient_checkpointing_disable()
    module(tokens, labels=tokens).loss.backward()
    assert len(calls) == 4


def test_embeddings_stand_in_for_tokens(module, tokens):
    embedded = module.get_input_embeddings()(tokens)
    assert torch.equal(module(inputs_embeds=embedded).logits, module(tokens).logits)
    calls = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    new = module.generate(inputs_embeds=embedded, **calls)
    assert torch.equal(new, module.generate(tokens, **calls)[:, tokens.shape[1] :])
    for wrong in ({}, {"input_ids": tokens, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either"):
            module(**wrong)


def test_state_dict_has_the_names_of_the_table():
    side = twin("charlm")
    module = side.build(PRESETS["tiny"])
    assert set(module.state_dict()) == {
        pair.theirs for pair in table.pairs(WEIGHTS, random_params())
    }


def test_bfloat16_survives(run, tmp_path):
    bridge.convert(run, tmp_path / "half", dtype="bfloat16", keep_fp32="none")
    module = bridge.torch.load(tmp_path / "half")
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    expected = random_params(seed=200)["head/kernel"].T
    found = module.head.weight.detach().float().numpy()
    np.testing.assert_array_equal(found, torch.from_numpy(expected.copy()).bfloat16().float())


@pytest.mark.slow
def test_a_folder_alone_opens_in_transformers(model_directory, module, tokens, tmp_path):
    text = "hello, wörld! 漢\n\n<UNK> <PAD> 🎉 §"
    code = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
path = {str(model_directory)!r}
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path)
ids = torch.tensor({tokens.tolist()})
calls = dict(do_sample=False, max_new_tokens=20)
a, b = (model.generate(ids, use_cache=use, **calls) for use in (True, False))
encoded = tokenizer.encode({text!r})
result = [a.tolist(), b.tolist(), model(ids).logits.tolist(), encoded,
          tokenizer.decode(encoded), model.training, str(model.dtype)]
"""
    cached, plain, logits, encoded, decoded, training, dtype = alone(code, tmp_path)
    assert cached == plain
    assert not {0, 1} & {i for row in cached for i in row[11:]}  # special ids are suppressed
    assert np.abs(np.asarray(logits) - module(tokens).logits.detach().numpy()).max() <= 1e-6
    ids = vocabulary()["char_to_int"]
    assert encoded == [ids.get(character, 1) for character in text]
    assert decoded == "".join(c if c in ids else "<UNK>" for c in text)
    assert (training, dtype) == (False, "torch.float32")


def test_what_pytorch_trained_comes_back(model_directory, tmp_path):
    module = bridge.torch.load(model_directory)
    with torch.no_grad():
        module.head.bias += 1
    module.save_pretrained(tmp_path / "tuned")
    report = bridge.diff(model_directory, tmp_path / "tuned")
    changed = [path for path, row in report.tensors.items() if row["status"] != "equal"]
    assert (changed, report.config) == (["head/bias"], {})
    assert not bridge.open_checkpoint(tmp_path / "tuned").assumed


def test_tokenizer_equals_the_vocabulary_on_random_text(tmp_path):
    from tokenizers import Tokenizer

    content = vocabulary()
    write_tokenizer(tmp_path, CharTokenizer.from_json(content), context=32)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = content["char_to_int"]
    rng = np.random.default_rng(0)
    pool = [*ids, *"QXZ0§€🙂\r\t\u0301\u200d\x00", "<PAD>", "<UNK>"]
    for _ in range(300):
        text = "".join(rng.choice(pool, rng.integers(0, 30)))
        encoded = tokenizer.encode(text).ids
        assert encoded == [ids.get(character, 1) for character in text]
        known = "".join(c if c in ids else "<UNK>" for c in text)
        assert tokenizer.decode(encoded, skip_special_tokens=False) == known


@pytest.mark.slow
def test_one_hundred_adamw_steps(tmp_path):
    spec = jaxmodels.create("charlm:tiny", seed=3)
    graphdef, params, rest = split(spec)
    save_tree(tmp_path / "own", {path: np.asarray(leaf) for path, leaf in params.items()})
    module = bridge.torch.load(tmp_path / "own", config={"heads": 2})
    assert module.config.dropout == 0
    settings = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}
    check_one_hundred_adamw_steps(loss, (graphdef, params, rest), module, **settings)
