"""Folders of transformers that say what they are in one way or another; and those that are not."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2DoubleHeadsModel, GPT2LMHeadModel

import bridge
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from tests.bridge.helpers import command

pytestmark = pytest.mark.usefixtures("readers_here")
SIZES = {"vocab_size": 23, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}
PLAIN = {**SIZES, "bos_token_id": None, "eos_token_id": None}


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**PLAIN, activation_function="gelu")).eval()


def kept(folder, module, config=None, name="model.safetensors", state=None):
    """A folder with the module's weights, safetensors or torch's, and a config."""
    folder.mkdir(exist_ok=True)
    config = module.config.to_dict() if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    state = dict(module.transformer.state_dict(prefix="transformer.")) if state is None else state
    if name.endswith(".safetensors"):
        save_file({key: tensor.clone() for key, tensor in state.items()}, folder / name)
    else:
        torch.save(state, folder / name)
    return folder


def refused(exit_code, path, **options):
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(path, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


def opens(path, module, **options):
    source = bridge.open_checkpoint(path, **options)
    assert (source.config.heads, source.config.gelu) == (3, "exact")
    np.testing.assert_array_equal(
        source.tensors["embed/embedding"].read(), module.transformer.wte.weight.detach().numpy()
    )
    return source


def test_a_trainers_folder(tmp_path, module):
    folder = kept(tmp_path / "checkpoint-5", module, name="pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        torch.save({"state": {}}, folder / name)
    assert opens(folder, module).format == "gpt2"
    (folder / "pytorch_model.bin").unlink()
    assert "no weights" in refused(CORRUPT, folder)
    assert "give one of its checkpoints: checkpoint-5" in refused(CORRUPT, tmp_path)
    assert "checkpoint-5" in refused(CORRUPT, kept_config(tmp_path, module))


def kept_config(folder, module):
    (folder / "config.json").write_text(json.dumps(module.config.to_dict()))
    return folder


def test_one_file_of_a_folder_is_what_the_config_beside_it_says(tmp_path, module):
    folder = kept(tmp_path / "gpt2", module)
    opens(folder / "model.safetensors", module)
    kept(tmp_path / "gpt2", module, name="weights.pt")
    opens(folder / "weights.pt", module)
    source = opens(folder, module)
    assert "model.safetensors is read, as by transformers, and not weights.pt" in source.notes
    bridge.convert(folder, tmp_path / "own")
    opens(tmp_path / "own" / "model.safetensors", module)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt_bigcode"}, "gpt_bigcode"),
        ({"model_type": None, "architectures": ["GPTBigCodeForCausalLM"]}, "GPTBigCode"),
        ({"model_type": None, "architectures": None, "multi_query": False}, "multi_query"),
        ({"hidden_size": 24}, "hidden_size"),
        ({"is_causal": False}, "is_causal"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantised"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon"),
        ({"activation_function": None}, "activation_function"),
    ],
)
def test_what_another_model_says_is_refused_by_name(tmp_path, module, changes, told):
    config = {**module.config.to_dict(), **changes}
    assert told in refused(MISMATCH, kept(tmp_path / "gpt2", module, config))
    kept(tmp_path / "gpt2", module, config, name="pytorch_model.bin")
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    assert told in refused(MISMATCH, tmp_path / "gpt2")
    assert told in refused(MISMATCH, tmp_path / "gpt2" / "pytorch_model.bin")


@pytest.mark.parametrize("heads", ["3", 3.0, True, None, [3], 0, -1])
def test_odd_numbers_of_heads(tmp_path, module, heads):
    config = {**module.config.to_dict(), "n_head": heads}
    assert "heads" in refused(CORRUPT, kept(tmp_path / "gpt2", module, config))


def test_what_transformers_takes_for_a_missing_key_is_said(tmp_path, module):
    config = {"model_type": "gpt2", "n_layer": 2}
    source = bridge.open_checkpoint(kept(tmp_path / "gpt2", module, config))
    assert source.config.heads == 12
    assert source.assumed.items() >= {"heads": 12, "gelu": "tanh"}.items()
    report = bridge.convert(tmp_path / "gpt2", tmp_path / "out")
    assert "assumed: heads = 12" in report.notes
    assert "`heads = 12` was assumed" in (tmp_path / "out" / "README.md").read_text()


def test_heads_that_nothing_tells_must_be_given(tmp_path, module, capsys):
    folder = kept(tmp_path / "gpt2", module)
    (folder / "config.json").unlink()
    code, _, err = command(capsys, "convert", folder, tmp_path / "out")
    assert code == MISMATCH
    assert "--set heads=" in err
    assert not (tmp_path / "out").exists()
    opens(folder, module, config={"heads": 3, "gelu": "exact"})
    torch.save({"tensors": 1}, folder / "other.pt")
    (folder / "config.json").write_text(json.dumps({"n_head": 3, "n_embd": 12}))
    source = bridge.open_checkpoint(folder)
    assert (source.config.heads, source.assumed["gelu"]) == (3, "tanh")


def test_what_is_tied_stands_under_any_name(tmp_path, module):
    state = dict(module.state_dict())
    wte = state["transformer.wte.weight"]
    for name in ("lm_head.weight", "lm_head.decoder.weight"):
        held = {key: x for key, x in state.items() if ".wte." not in key and "lm_head" not in key}
        source = opens(kept(tmp_path / "head", module, state={**held, name: wte}), module)
        assert any(name in note for note in source.notes)
        held["transformer.wte.weight"] = wte + 1
        folder = kept(tmp_path / "untied", module, state={**held, name: wte})
        assert name in refused(MISMATCH, folder)


def test_what_the_header_says_is_shared(tmp_path, module):
    """Blocks that share a tensor: `save_model` keeps one, and says so in the header."""
    from safetensors.torch import save_model

    twice = GPT2LMHeadModel(module.config)
    twice.transformer.h[1].mlp.c_fc.weight = twice.transformer.h[0].mlp.c_fc.weight
    folder = kept(tmp_path / "gpt2", module)
    save_model(twice, folder / "model.safetensors")
    source = bridge.open_checkpoint(folder)
    first, second = (source.tensors[f"blocks/{i}/mlp/up/kernel"].read() for i in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_other_heads_are_left_out_and_listed(tmp_path):
    torch.manual_seed(1)
    double = GPT2DoubleHeadsModel(GPT2Config(**PLAIN, activation_function="gelu", num_labels=1))
    double.save_pretrained(tmp_path / "double")
    source = opens(tmp_path / "double", double)
    assert any("multiple_choice_head.summary.weight" in note for note in source.notes)


@pytest.mark.parametrize("wrapped", ["", "model."])
def test_names_of_mlx_and_no_others(tmp_path, module, wrapped):
    state = {
        wrapped + name: (x.T.contiguous() if ".c_" in name and x.ndim == 2 else x)
        for name, x in module.transformer.state_dict().items()
    }
    folder = kept(tmp_path / "mlx", module, state=state)
    opens(folder, module)
    state.pop(f"{wrapped}ln_f.weight")
    told = refused(MISMATCH, kept(tmp_path / "mlx", module, state=state))
    assert "ln_f.weight" in told
    assert "transformer.model." not in told
    assert "transformer.ln_f" not in told
    packed = {f"{wrapped}wte.weight": torch.ones(23, 2, dtype=torch.int32)}
    packed[f"{wrapped}wte.scales"] = packed[f"{wrapped}wte.biases"] = torch.ones(23, 1)
    assert "quantised" in refused(MISMATCH, kept(tmp_path / "mlx", module, state=state | packed))


def test_numbers_of_a_quantised_model_without_its_scales(tmp_path, module):
    state = dict(module.transformer.state_dict(prefix="transformer."))
    state["transformer.h.0.attn.c_attn.weight"] = torch.ones(12, 36, dtype=torch.int8)
    assert "int8" in refused(MISMATCH, kept(tmp_path / "gpt2", module, state=state))


def test_an_adapter_is_no_model(tmp_path, module):
    folder = kept(tmp_path / "gpt2", module)
    (folder / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refused(MISMATCH, folder)


def test_arguments_that_nanogpt_does_not_have(tmp_path, module):
    args = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 8, "bias": True,
            "vocab_size": 23, "dropout": 0.0}  # fmt: skip
    state = {
        name: (x.T.contiguous() if ".c_" in name and x.ndim == 2 else x)
        for name, x in module.state_dict().items()
    }
    torch.save({"model": state, "model_args": args}, tmp_path / "ckpt.pt")
    source = opens(tmp_path, module)
    assert source.assumed["gelu"] == "exact"
    assert any("--set gelu=tanh" in note for note in source.notes)
    # The same arguments in a config.json, as a mixin of the hub's library writes them.
    opens(kept(tmp_path / "hub", module, args, state=state), module)
    assert not any("fork of nanoGPT" in note for note in source.notes)
    # What changes no output is said; it is not written, as nanoGPT would not take it.
    idle = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "flash": True, "batch_size": 4}
    torch.save({"model": state, "model_args": args | idle}, tmp_path / "ckpt.pt")
    source = opens(tmp_path, module)
    assert any("without effect on the model's outputs: device = " in note for note in source.notes)
    bridge.convert(tmp_path, tmp_path / "out", to="nanogpt")
    written = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=False)
    assert written["model_args"] == args
    hub = kept(tmp_path / "hub", module, args | {"compile": True}, state=state)
    assert any("compile = True" in note for note in opens(hub, module).notes)
    args["flash"] = {"window": 3}
    torch.save({"model": state, "model_args": args}, tmp_path / "ckpt.pt")
    assert "flash" in refused(MISMATCH, tmp_path)
    del args["flash"]
    args["mup_enabled"] = False
    torch.save({"model": state, "model_args": args}, tmp_path / "ckpt.pt")
    assert "mup_enabled" in refused(MISMATCH, tmp_path)
    assert "mup_enabled" in refused(MISMATCH, kept(tmp_path / "hub", module, args, state=state))


def test_a_gguf_file_that_says_more_or_less(tmp_path, module):
    bridge.convert(kept(tmp_path / "gpt2", module), tmp_path / "out", to="gguf")
    names = gguf.GGUFReader(tmp_path / "out" / "model.gguf")

    def changed(**values):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gpt2")
        for key, value in {"head_count": 3, **values}.items():
            if value is not None:
                writer.add_uint32(f"gpt2.attention.{key}", value)
        for tensor in names.tensors:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    source = bridge.open_checkpoint(changed())
    assert (source.config.heads, source.assumed["gelu"]) == (3, "tanh")
    assert "--set heads=" in refused(MISMATCH, changed(head_count=None))
    assert "head_count_kv" in refused(MISMATCH, changed(head_count_kv=1))
    assert "sliding_window" in refused(MISMATCH, changed(sliding_window=4))
    # A GGUF file beside transformers' config, as on the hub.
    shutil.copy(tmp_path / "gpt2" / "config.json", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert opens(tmp_path / "out", module).format == "gguf"
