"""`train --lora`: adapters of a frozen model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.commands.base import check
from jaxmodels.commands.train_options import resolve
from jaxmodels.errors import DONE, USAGE, Problem
from jaxmodels.recipe import Lora, Recipe
from jaxmodels.runtime.lora import is_adapter, targets
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import params_of
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import init
from jaxmodels.sizes import outline
from tests.bridge.helpers import write_run
from tests.contract import smallest

SMALL = ["--eval-every", "4", "--save-every", "4", "--sample-every", "0", "--data", "text:"]
LORA = ["--lora", "rank=2,alpha=8", "--optim.peak-lr", "0.03", "--optim.schedule-steps", "8"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run with random parameters, to be adapted."""
    return write_run(tmp_path_factory.mktemp("lora") / "base", {1: 1.0})


@pytest.fixture(scope="module")
def text(base) -> Path:
    """What it is adapted to."""
    (base.parent / "text.txt").write_text("abc, def! " * 400)
    return base.parent / "text.txt"


def train(out: Path, text: Path, *flags: str) -> int:
    return main(["train", "--out", str(out), *SMALL[:-1], f"text:{text}", *flags])


@pytest.fixture(scope="module")
def run(base, text) -> Path:
    """Eight steps; not to be changed."""
    there = base.parent / "run"
    assert train(there, text, "--init", str(base), "--steps", "8", *LORA) == DONE
    return there


def values(path: Path) -> dict[str, np.ndarray]:
    return {p: tensor.read() for p, tensor in bridge.open_checkpoint(path).tensors.items()}


def stored(checkpoint: Path) -> set[str]:
    tree = json.loads((checkpoint / "params" / "_METADATA").read_text())["tree_metadata"]
    return {"/".join(part["key"] for part in leaf["key_metadata"]) for leaf in tree.values()}


def test_only_the_adapters_learn_and_are_saved(base, run):
    losses = [record["loss"] for record in read(run / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    before, after = values(base), values(run)
    changed = {path for path in before if (before[path] != after[path]).any()}
    assert changed == {path for path in before if path.startswith("blocks/") and "/kernel" in path}
    for step in (4, 8):
        saved = stored(run / "checkpoints" / str(step))
        assert saved == {f"{path}_lora_{side}" for path in changed for side in "ab"}


@pytest.mark.slow
def test_a_resumed_run_needs_nothing_but_itself(base, run, text, tmp_path):
    copy, again = tmp_path / "copy", tmp_path / "again"
    shutil.copytree(base, copy)
    assert train(again, text, "--init", str(copy), "--steps", "4", *LORA) == DONE
    shutil.rmtree(copy)
    assert train(again, text, "--steps", "8") == DONE
    one, two = values(run), values(again)
    assert all((one[path] == two[path]).all() for path in one)
    config = json.loads((again / "config.json").read_text())
    assert config["init"]["path"] == str(copy)


@pytest.mark.parametrize("arch", ["wikigpt", "wigip", "bitgen"])
def test_the_state_has_moments_of_adapters_alone(arch):
    package, recipe = jaxmodels.arch(arch), Recipe(lora="rank=2", ema_decay=0.9)
    tx = optimiser(recipe.optim, 0.1)
    _, _, state = init(package, smallest(arch), recipe, tx, make_mesh(""))
    moments = {
        path[-1].key
        for path, leaf in jax.tree.leaves_with_path(state.opt)
        if isinstance(path[-1], jax.tree_util.DictKey)
    }
    assert moments == {path for path in state.params if is_adapter(path)} == state.ema.keys()
    if arch == "bitgen":
        assert {path.split("/")[0] for path in moments} == {"text", "decoder"}


def test_targets():
    package = jaxmodels.arch("wigip")
    shapes = params_of(outline(package, smallest("wigip")))
    for pattern in ("blocks/attn/q/kernel", "blocks/0/attn/q/kernel", "*/q/kernel"):
        assert targets(package, Lora(2, 2.0, (pattern,)), shapes) == ["blocks/attn/q/kernel"]
    with pytest.raises(Problem, match="nothing/") as caught:
        targets(package, Lora(2, 2.0, ("nothing/*",)), shapes)
    assert "blocks/attn/q/kernel" in caught.value.why
    assert targets(package, Lora(64, 2.0), shapes)
    with pytest.raises(Problem, match="a rank of 65") as caught:
        targets(package, Lora(65, 2.0), shapes)
    assert caught.value.exit_code == USAGE


def test_the_setting():
    assert Lora.parse("rank=8,alpha=16") == Lora(8, 16.0)
    assert Lora.parse("rank=8,alpha=2,targets=a/*|b") == Lora(8, 2.0, ("a/*", "b"))
    assert replace(Recipe(), lora="rank=4").adapters.scale == 1
    numbers = "rank=0", "rank=two", "rank=8,alpha=0", "rank=8,alpha=nan"
    assert Lora.parse("rank=8, alpha=16") == Lora(8, 16.0)
    for bad in (*numbers, "alpha=8", "rank=8,beta=1", "rank=8,rank=4", "rank=8,"):
        with pytest.raises(Problem) as caught:
            Recipe(lora=bad)
        assert caught.value.exit_code == USAGE


def test_what_does_not_go_together(base, text, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "charlm:tiny", "--out", str(out), "--lora", "rank=2"]) == USAGE
    assert "--lora needs --init" in capsys.readouterr().err
    init = ["--init", str(base)]
    assert train(out, text, *init, "--lora", "rank=2", "--init-optimizer") == USAGE
    assert train(out, text, *init, "--lora", "rank=2,targets=none") == USAGE
    assert "blocks/*/attn/qkv/kernel" in capsys.readouterr().err
    assert not out.exists()


def test_the_matrices_of_a_stack_are_counted_one_by_one(tmp_path, capsys):
    run = write_run(tmp_path / "run", {1: 1.0}, spec="wigip:tiny")
    words = ["--init", str(run), "--lora", "rank=2", "--out", str(tmp_path / "out")]
    check(resolve(words), resuming=False)
    config = jaxmodels.preset("wigip:tiny")[2]
    shapes = params_of(outline(jaxmodels.arch("wigip"), config))
    found = targets(jaxmodels.arch("wigip"), Lora(2, 2.0), shapes)
    assert f"adapt {config.layers * len(found)} matrices" in capsys.readouterr().err
