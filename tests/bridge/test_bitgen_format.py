"""BitGen Stage 1's checkpoints: in, through the formats of ours, and out again."""

import sys

import numpy as np
import pytest
import torch

import bridge
import jaxmodels
from bridge.checkpoint.loading import load_moments
from bridge.core import table
from bridge.core.ops import OPS
from bridge.formats import bitgen_optimizer
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline
from tests.bridge.helpers import random_params, random_state, write_run
from tests.jaxmodels.stage1 import CONFIG, GOLDEN, state_dict

HEADS = {"dinov2.heads": 4}
KEYS = [line.split("\t") for line in (GOLDEN / "state_dict_keys.tsv").read_text().splitlines()]
ORDER = [
    line.split("\t")[1] for line in (GOLDEN / "optimizer_param_order.txt").read_text().splitlines()
]


class Stage1Config:
    """Pickled by the trainer as a class of its main module."""

    def __init__(self):
        self.vocab_size, self.num_heads, self.embed_dim = 97, 4, 128
        self.queue_size, self.temperature, self.warmup_steps = 4096, 0.07, 1000


Stage1Config.__module__, Stage1Config.__qualname__ = "__main__", "Stage1Config"


def tensors() -> dict[str, torch.Tensor]:
    """The golden state dict, in the seed's order."""
    held = state_dict()
    return {name: torch.from_numpy(np.array(held[name])) for name, *_ in KEYS}


def container(path, monkeypatch, **changes):
    """A checkpoint as the seed's trainer writes it."""
    monkeypatch.setattr(sys.modules["__main__"], "Stage1Config", Stage1Config, raising=False)
    value = {
        "global_step": 1000,
        "epoch": 3,
        "model_state_dict": tensors(),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "scheduler_state_dict": {"last_epoch": 1000, "lr_lambdas": [None]},
        "config": Stage1Config(),
    }
    torch.save(value | changes, path)
    return path


def same(found: dict[str, torch.Tensor]) -> None:
    """Names, their order, dtypes, shapes and every bit are the golden ones."""
    assert [[n, str(tuple(t.shape)), str(t.dtype)] for n, t in found.items()] == [
        row[:3] for row in KEYS
    ]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


@pytest.mark.slow
def test_the_state_dict_of_the_card():
    """All 387 names in their order, shapes and dtypes; and which of 350 are dead."""
    package = jaxmodels.arch("bitgen_stage1")
    _, params, rest = split(outline(package, package.PRESETS["card"]))
    held = params | rest
    found = {pair.theirs: pair for pair in table.pairs(package.UPSTREAM, held)}
    rows = []
    for name in table.in_order(package.UPSTREAM, found):
        leaf, op = held[found[name].ours], OPS[found[name].op]
        shape, dtype = op.their_shape(leaf.shape), op.their_dtype(leaf.shape, leaf.dtype)
        kind = "param" if found[name].ours in params else "buffer"
        rows.append([name, str(tuple(shape)), str(dtype), kind])
    lines = (GOLDEN / "card_keys.tsv").read_text().splitlines()
    assert rows == [line.split("\t") for line in lines]
    assert len(rows) == 387
    order = list(bitgen_optimizer.trained(name for name, *_ in rows).values())
    assert len(order) == 350
    dead = [4, 236, 237, 238, 239, 322, 323, 342, 343]
    assert [index for index, alive in enumerate(order) if not alive] == dead


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return container(tmp_path_factory.mktemp("seed") / "checkpoint-1000.pt", patch)


@pytest.fixture(scope="module")
def directory(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("directory") / "model"
    bridge.convert(checkpoint, folder, config=HEADS)
    return folder


@pytest.mark.slow
def test_what_the_file_says(checkpoint):
    source = bridge.open_checkpoint(checkpoint, config=HEADS)
    assert (source.format, source.arch) == ("bitgen", "bitgen_stage1")
    assert source.config == jaxmodels.arch("bitgen_stage1").Config(vocab=97, dinov2=CONFIG.dinov2)
    assert source.assumed == {"image_size": 224, "dropout": 0.1, "dinov2.interpolation": "size"}
    assert source.origin["step"] == 1000
    assert source.parameters == 1_258_595
    assert "dinov2.heads" in refused(MISMATCH, bridge.open_checkpoint, checkpoint)  # 48 are no 64s


def test_every_tensor_becomes_the_models(checkpoint):
    _, params, rest = split(bridge.load(checkpoint, config=HEADS))
    held = state_dict()
    assert params["memory/mean"].tobytes() == held["episodic_memory.gpm.memory_mean"].tobytes()
    np.testing.assert_array_equal(
        rest["fusion/image_queue"], held["cross_modal_fusion.image_queue"]
    )
    assert int(rest["fusion/queue_ptr"]) == 4090
    assert rest["memory/write_count"].tolist()[:3] == [3, 10, 17]


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_bare_state_dict_with_the_names_of_transformers_5(tmp_path, prefix):
    five = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }
    renamed = {}
    for name, tensor in tensors().items():
        for old, new in five.items():
            name = name.replace(old, new) if ".dinov2_model." in name else name
        renamed[prefix + name] = tensor
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    source = bridge.open_checkpoint(tmp_path / "pytorch_model.bin", config=HEADS)
    assert source.format == "bitgen"
    assert any(prefix in note for note in source.notes) or not prefix
    bridge.convert(tmp_path / "pytorch_model.bin", tmp_path / "out", to="bitgen", config=HEADS)
    same(torch.load(tmp_path / "out" / "checkpoint-0.pt")["model_state_dict"])


def test_there_and_back_is_bit_exact(directory, tmp_path):
    report = bridge.convert(directory, tmp_path / "back", to="bitgen", verify="roundtrip")
    assert report.files == ["checkpoint-1000.pt", "manifest.json"]
    value = torch.load(tmp_path / "back" / "checkpoint-1000.pt")  # nothing in it is code
    same(value["model_state_dict"])
    assert (value["global_step"], value["epoch"]) == (1000, 3)
    assert value["config"]["warmup_steps"] == 1000
    assert value["scheduler_state_dict"]["lr_lambdas"] == [None]
    optimiser = torch.optim.AdamW([torch.nn.Parameter(t) for t in map(torch.zeros, [1] * 170)])
    optimiser.load_state_dict(value["optimizer_state_dict"])


@pytest.mark.slow
def test_the_optimisers_state_is_carried(tmp_path, monkeypatch):
    """torch numbers parameters in the module's order, and has nothing of the nine dead ones."""
    rng, held = np.random.default_rng(0), tensors()
    dead = ("mask_token", "text_pooler.0", "image_pooler.0", ".ln2.")
    live = [i for i, name in enumerate(ORDER) if not any(part in name for part in dead)]
    assert len(ORDER) - len(live) == 9
    state = {
        i: {
            "step": torch.tensor(7.0),
            "exp_avg": torch.from_numpy(rng.random(held[ORDER[i]].shape, np.float32)),
            "exp_avg_sq": torch.from_numpy(rng.random(held[ORDER[i]].shape, np.float32)),
        }
        for i in live
    }
    made = torch.optim.AdamW([torch.nn.Parameter(held[n]) for n in ORDER], 2e-4, weight_decay=0.02)
    saved = {"state": state, "param_groups": made.state_dict()["param_groups"]}
    path = container(tmp_path / "checkpoint-7.pt", monkeypatch, optimizer_state_dict=saved)
    moments = load_moments(path, config=HEADS)
    assert (moments.count, moments.settings["weight_decay"]) == (7, 0.02)
    query = ORDER.index("episodic_memory.input_proj.weight")
    np.testing.assert_array_equal(
        moments.mu["memory/query/kernel"].read(), state[query]["exp_avg"].numpy().T
    )
    assert not moments.nu["vision/mask"].read().any()
    bridge.convert(path, tmp_path / "model", config=HEADS, optimizer=True)
    bridge.convert(tmp_path / "model", tmp_path / "back", to="bitgen", optimizer=True)
    (file,) = (tmp_path / "back").glob("*.pt")
    back = torch.load(file)["optimizer_state_dict"]
    made.load_state_dict(back)
    assert sorted(back["state"]) == live
    for i in live:
        assert float(back["state"][i]["step"]) == 7
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(back["state"][i][name], state[i][name])
    broken = {"state": {0: state[live[0]]}, "param_groups": saved["param_groups"]}
    container(path, monkeypatch, optimizer_state_dict=broken)
    assert "1 entries for 161" in refused(MISMATCH, load_moments, path, config=HEADS)


@pytest.mark.slow
def test_a_run_and_its_directory_hold_the_state(tmp_path):
    spec = "bitgen_stage1:smallest"
    write_run(tmp_path / "run", {5: None}, spec=spec)
    options = {"dtype": "bfloat16", "keep_fp32": ["none"], "verify": "roundtrip"}
    bridge.convert(tmp_path / "run", tmp_path / "model", **options)
    for path, dtype in (("run", "float32"), ("model", "bfloat16")):
        _, params, rest = split(bridge.load(tmp_path / path))
        assert all(x.dtype == dtype for x in params.values() if x.ndim > 1)
        wanted = random_state(spec, 5)
        assert rest.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(rest[name], array, err_msg=name)
    assert params.keys() == random_params(spec, 5).keys()
    said = refused(MISMATCH, bridge.convert, tmp_path / "run", tmp_path / "out", to="bitgen")
    assert "queue is 64; its code has 4096" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_state_that_is_not_there(tmp_path):
    """All of it missing, it begins anew; some of it missing, the file is broken."""
    whole = tensors()
    buffers = [name for name, *_, kind in KEYS if kind == "buffer"]
    less = {name: tensor for name, tensor in whole.items() if name not in buffers[4:]}
    torch.save(less, tmp_path / "some.pt")
    assert "missing, " in refused(
        MISMATCH, bridge.open_checkpoint, tmp_path / "some.pt", config=HEADS
    )
    params = {name: tensor for name, tensor in whole.items() if name not in buffers}
    torch.save(params, tmp_path / "none.pt")
    source = bridge.open_checkpoint(tmp_path / "none.pt", "bitgen_stage1", HEADS)
    assert any("begin as in a new model" in note for note in source.notes)
    assert source.tensors["memory/quality"].read().tolist() == [1] * 32


def test_settings_of_the_tower(checkpoint):
    from bridge.checkpoint.config import parse_settings

    assert parse_settings(["dinov2.heads=4"]) == HEADS
    said = refused(USAGE, bridge.open_checkpoint, checkpoint, config={"dinov2.head": 4})
    assert "did you mean dinov2.heads" in said
    nested = bridge.open_checkpoint(checkpoint, config={"dinov2": {"heads": 4}})
    assert nested.config.dinov2.heads == 4


class Harm:
    """What a pickle may name, and must not call."""

    def __reduce__(self):
        return (print, ("harm",))


def test_nothing_in_it_is_run(tmp_path, monkeypatch, capsys):
    container(tmp_path / "bad.pt", monkeypatch, metrics=Harm())
    source = bridge.open_checkpoint(tmp_path / "bad.pt", config=HEADS)
    assert "metrics" not in source.origin
    assert "harm" not in capsys.readouterr().out
