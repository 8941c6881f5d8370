"""Files with more or less than a model: they open correctly, or are refused."""

import json
import os

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

import bridge
import jaxmodels
from bridge.commands.checks import inspect_main, verify_main
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, Problem
from tests.bridge.helpers import GOLDEN, random_params, save_tree
from tests.bridge.test_any_dinov2 import made, published

pytestmark = pytest.mark.usefixtures("readers_here")


def refused(code, call, *args, **options):
    with pytest.raises(Problem) as caught:
        call(*args, **options)
    assert caught.value.exit_code == code
    return f"{caught.value.what} {caught.value.why}"


def test_a_config_without_mask_token(tmp_path):
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, image_size=28, patch_size=14,
        use_mask_token=False,
    )  # fmt: skip
    theirs = transformers.Dinov2Model(config)
    theirs.save_pretrained(tmp_path / "in")
    bridge.convert(tmp_path / "in", tmp_path / "out", to="dinov2")
    again = transformers.Dinov2Model.from_pretrained(tmp_path / "out")
    assert again.config.use_mask_token
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_blocks_in_chunks_that_fsdp_wrapped(tmp_path):
    _, tower = made(2, 4, 3, 0, False, False, 0)
    state = {}
    for name, tensor in published(tower).items():
        if name.startswith("blocks."):
            number = int(name.split(".")[1])
            name = name.replace("blocks.", f"blocks.{number // 2}._fsdp_wrapped_module.")
        state[f"teacher.backbone._fsdp_wrapped_module.{name}"] = tensor
    torch.save({"model": state}, tmp_path / "x.pth")
    source = bridge.open_checkpoint(tmp_path / "x.pth", config={"heads": 2})
    assert source.config.layers == 3
    wanted = published(tower)["blocks.2.norm1.bias"].numpy()
    np.testing.assert_array_equal(source.tensors["blocks/2/norm1/bias"].read(), wanted)


def test_heads_of_another_width_than_the_published_are_asked_for(tmp_path):
    _, tower = made(2, 4, 1, 0, False, False, 0)
    torch.save(published(tower), tmp_path / "x.pth")
    assert "heads" in refused(MISMATCH, bridge.open_checkpoint, tmp_path / "x.pth")


@pytest.mark.parametrize("arch", ["bwetaf", "wikigpt"])
def test_heads_of_our_own_trees_are_asked_for(tmp_path, arch):
    save_tree(tmp_path / "tree", random_params(f"{arch}:tiny"))
    assert "heads" in refused(MISMATCH, bridge.open_checkpoint, tmp_path / "tree")
    config = jaxmodels.arch(arch).PRESETS["tiny"]
    given = bridge.open_checkpoint(tmp_path / "tree", config={"heads": config.heads})
    assert given.config.heads == config.heads


def test_tensors_of_eight_bits_are_named(tmp_path):
    state = {f"transformer.h.{i}.ln_1.weight": torch.ones(4).to(torch.float8_e4m3fn)
             for i in range(3)}  # fmt: skip
    torch.save(state, tmp_path / "x.pt")
    assert "float8_e4m3fn" in refused(MISMATCH, bridge.open_checkpoint, tmp_path / "x.pt")


def strange_optimiser(path):
    """nanoGPT's checkpoint with the state of an optimiser over other parameters."""
    saved = torch.load(GOLDEN.parent / "nanogpt_bias" / "ckpt.pt", weights_only=False)
    moment = {"step": torch.tensor(1.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    saved["optimizer"] = {"state": {0: moment}, "param_groups": [{"params": [0], "lr": 0.1}]}
    torch.save(saved, path)


def test_a_strange_optimiser_does_not_sink_the_model(tmp_path, capsys):
    strange_optimiser(tmp_path / "ckpt.pt")
    assert inspect_main([str(tmp_path / "ckpt.pt")]) == DONE
    said = capsys.readouterr().out
    assert "note: only without --optimizer: the optimiser's state is not that of AdamW" in said
    assert "problem:" not in said
    refused(MISMATCH, bridge.convert, tmp_path / "ckpt.pt", tmp_path / "out", optimizer=True)
    bridge.convert(tmp_path / "ckpt.pt", tmp_path / "out")


def test_verify_takes_what_the_source_cannot_say(tmp_path, capsys):
    _, tower = made(2, 4, 1, 0, False, False, 0)
    state = published(tower)
    both = {"model": {f"{k}.{n}": t + (k == "b") for n, t in state.items() for k in "ab"}}
    torch.save(both, tmp_path / "x.pth")
    bridge.convert(tmp_path / "x.pth", tmp_path / "out", config={"heads": 2, "model": "b"})
    words = [str(tmp_path / "out"), "--against", str(tmp_path / "x.pth")]
    assert verify_main([*words, "--set", "model=b"]) == DONE
    assert "NOT verified" not in capsys.readouterr().out
    assert verify_main([*words, "--set", "model=a"]) != DONE


@pytest.mark.parametrize("name", ["_sharding", "embed.embedding/.zarray", "embed.embedding/0.0"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_within_orbax_is_not_waited_for(tmp_path, name, kind):
    tree = {"embed": {"embedding": np.ones((2, 2), np.float32)}}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)).save(tmp_path / "tree", tree)
    path = tmp_path / "tree" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert "not a file" in refused(CORRUPT, bridge.open_checkpoint, tmp_path / "tree")


def test_orbax_without_arrays(tmp_path):
    save_tree(tmp_path / "tree", {"a": np.ones(2, np.float32)})
    (tmp_path / "tree" / "_METADATA").unlink()
    assert "holds no arrays" in refused(CORRUPT, bridge.open_checkpoint, tmp_path / "tree")


def test_sides_that_are_pairs(tmp_path):
    """transformers takes [height, width] for them, and keeps them so."""
    import transformers

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.Dinov2Config(image_size=[28, 28], patch_size=[14, 14], **sizes)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "config.json"
    assert json.loads(file.read_text())["image_size"] == [28, 28]
    found = bridge.open_checkpoint(tmp_path / "in").config
    assert (found.image_size, found.patch, found.heads) == (28, 14, 2)
    file.write_text(file.read_text().replace('"image_size": [\n    28', '"image_size": [\n    42'))
    assert "image_size = [42, 28]" in refused(MISMATCH, bridge.open_checkpoint, tmp_path / "in")
