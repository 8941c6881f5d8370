"""The worked example of a model from outside: stock folders of transformers, and the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import bridge
import jaxmodels
from bridge.formats.raw import RawCheckpoint
from bridge.formats.wrappers import unwrapped
from jaxmodels import __main__
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.registry import GROUP
from tests.bridge.helpers import random_params
from tests.contract import smallest

pytestmark = pytest.mark.usefixtures("examples")
ROOT = Path(__file__).parents[2] / "examples" / "llama"
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 20), np.int32)
# Sizes that all differ from transformers' defaults.
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder that transformers wrote, and the logits that its class gives."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.1)).eval()
    folder = tmp_path_factory.mktemp("stock")
    module.save_pretrained(folder)
    return folder, logits_of(module)


def logits_of(module):
    import torch

    with torch.no_grad():
        return module(torch.from_numpy(TOKENS).long()).logits.float().numpy()


def ours(folder, **options):
    return np.asarray(nnx.jit(lambda m, t: m(t)[0])(bridge.load(folder, **options), TOKENS))


@pytest.mark.slow
def test_a_folder_of_transformers_opens_with_its_logits(stock):
    folder, expected = stock
    found = bridge.open_checkpoint(folder)
    assert (found.arch, found.format, found.assumed) == ("llama", "llama", {})
    config = found.config
    assert (config.kv_heads, config.rope_base, config.eps) == (2, 500_000.0, 1e-5)
    assert np.abs(ours(folder) - expected).max() <= 1e-5


@pytest.mark.slow
def test_shards_and_bfloat16_and_an_older_config_open_too(stock, tmp_path):
    import torch
    from transformers import LlamaForCausalLM

    module = LlamaForCausalLM.from_pretrained(stock[0])
    module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len([*(tmp_path / "shards").glob("model-*.safetensors")]) > 1
    config = json.loads((tmp_path / "shards" / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    (tmp_path / "shards" / "config.json").write_text(json.dumps(config))
    assert np.abs(ours(tmp_path / "shards") - stock[1]).max() <= 1e-5
    module.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    held = bridge.open_checkpoint(tmp_path / "half").tensors
    assert {str(tensor.dtype) for tensor in held.values()} == {"bfloat16"}
    wide = LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    found = ours(tmp_path / "half", dtype="float32")
    assert np.abs(found - logits_of(wide.eval())).max() <= 1e-5


@pytest.mark.slow
def test_what_is_written_opens_in_transformers(stock, tmp_path):
    from transformers import AutoModelForCausalLM

    report = bridge.convert(stock[0], tmp_path / "out", verify="logits")
    assert report.arch == "llama"
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(module).__name__ == "LlamaForCausalLM"
    assert np.abs(logits_of(module) - stock[1]).max() <= 1e-5
    assert np.abs(ours(tmp_path / "out") - stock[1]).max() <= 1e-5


@pytest.mark.slow
def test_buffers_outside_of_the_state_dict_have_values(stock):
    module = bridge.torch.load(stock[0])
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert np.abs(logits_of(module) - stock[1]).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("tie_word_embeddings", True),
        ("hidden_act", "gelu"),
        ("head_dim", 16),
        ("rope_parameters", "linear"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0}),
        ("rope_parameters", {"rope_theta": 500_000.0, "partial_rotary_factor": 0.5}),
    ],
)
def test_what_it_does_not_compute_is_refused_by_its_key(stock, tmp_path, key, value):
    shutil.copytree(stock[0], tmp_path / "changed")
    file = tmp_path / "changed" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(Problem, match=f"the config says {key} = ") as caught:
        bridge.load(tmp_path / "changed")
    assert caught.value.exit_code == MISMATCH


@pytest.mark.slow
def test_bare_tensors_need_the_heads_and_shapes_tell_those_of_keys(stock, tmp_path):
    shutil.copyfile(stock[0] / "model.safetensors", tmp_path / "bare.safetensors")
    with pytest.raises(Problem, match="heads and kv_heads cannot be determined"):
        bridge.open_checkpoint(tmp_path / "bare.safetensors")
    given = {"heads": 4, "rope_base": 500_000.0, "eps": 1e-5}
    assert bridge.open_checkpoint(tmp_path / "bare.safetensors", config=given).config.kv_heads == 2
    assert np.abs(ours(tmp_path / "bare.safetensors", config=given) - stock[1]).max() <= 1e-5


@pytest.mark.parametrize("arch", ["wikigpt", "llama", "bwetaf"])
def test_a_wrapper_called_model_is_taken_off_beside_names_that_begin_so(arch):
    """llama's own names begin with `model.`: that is a wrapper's prefix for all others, and a
    second one for llama."""
    from bridge.core import table
    from bridge.core.tensors import Tensor

    arrays = random_params(f"{arch}:smallest", seed=0)
    names = [pair.theirs for pair in table.pairs(jaxmodels.arch(arch).WEIGHTS, arrays)]
    held = {
        f"model.{name}": Tensor(f"model.{name}", (1,), np.dtype("f4"), lambda: np.zeros(1))
        for name in names
    }
    found = unwrapped(RawCheckpoint(Path("x"), "torch", held), None, {})
    assert [*found.tensors] == names


@pytest.mark.slow
def test_the_command_trains_generates_and_converts(tmp_path, capsys):
    """A few steps, from the first flag to a folder of transformers."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    size = ["--steps", "2", "--batch", "4", "--model.layers", "1", "--sample-every", "0"]
    data = ["--data", f"text:{tmp_path}/text.txt", "--mesh", "data=1"]
    assert __main__.main(["train", "llama:tiny", "--out", run, *data, *size]) == 0
    assert __main__.main(["generate", run, "--prompt", "the ", "--max-new-tokens", "20"]) == 0
    assert __main__.main(["convert", run, out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["arch"] == "llama"
    assert __main__.main(["inspect", out]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] is None  # else transformers takes 2, and would stop there


def test_a_model_axis_that_does_not_divide_the_heads_of_keys_is_refused():
    from jaxmodels.runtime.sharding import check_heads

    check_heads(smallest("llama"), 2)
    with pytest.raises(Problem, match="2 and 4 attention heads cannot be split over 4 devices"):
        check_heads(smallest("llama"), 4)


def test_the_example_declares_its_entry_point():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][GROUP] == {"llama": "llama"}


def test_the_page_counts_its_lines():
    counted = 0
    page = (ROOT / "README.md").read_text()
    for file in sorted((ROOT / "llama").glob("*.py")):
        lines = len(file.read_text().splitlines())
        assert f"| `{file.name}` | {lines} |" in page, file.name
        counted += lines
    assert f"{counted} lines" in page
    assert counted <= 350
