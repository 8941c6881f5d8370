"""A run with stacked blocks, opened by the bridge, which names each block."""

import shutil

import numpy as np
import pytest

import bridge
from bridge.core.tensors import Tensor
from bridge.storage.orbax import OrbaxArray, read_tree
from bridge.storage.stacks import unstack_blocks
from jaxmodels.errors import Problem
from jaxmodels.runtime.paths import params_of
from jaxmodels.runtime.runs import checkpoint, state_io
from jaxmodels.runtime.step import State
from tests.bridge.helpers import assert_same_params, random_params, write_run
from tests.children import printed, simulated


def tensor(name, array, reads):
    def read():
        reads.append(name)
        return array

    return Tensor(name, array.shape, array.dtype, read)


def test_a_stacked_tensor_is_read_once_for_all_of_its_blocks():
    reads: list[str] = []
    array = np.arange(12.0).reshape(3, 4)
    held = {name: tensor(name, array, reads) for name in ("blocks.norm.scale", "blocks.0.x", "y")}
    cut = unstack_blocks(held, "wigip")
    assert sorted(cut) == sorted(["blocks.0.x", "y", *(f"blocks.{i}.norm.scale" for i in range(3))])
    assert not reads
    for _ in range(2):  # a second pass, as checks make it, reads it again, and once
        for i in (2, 0, 1):
            np.testing.assert_array_equal(cut[f"blocks.{i}.norm.scale"].read(), array[i])
    assert reads == ["blocks.norm.scale"] * 2
    assert unstack_blocks(held, "charlm") == held


@pytest.mark.slow
def test_large_stacks_of_a_run_are_read_block_by_block(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", {}, spec="wigip:tiny")
    params = random_params("wigip:tiny", seed=7)
    step = np.int32(7)
    monkeypatch.setattr(state_io, "BLOCK", 10_000)
    keeper = checkpoint.Checkpoints(run / "checkpoints", keep=1)
    keeper.save(State(params, {}, {"mu": params}, step, np.zeros(2, np.uint32)), {}, {})
    keeper.wait()
    held = {t.name: t for t in read_tree(run / "checkpoints" / "7" / "params")[0].values()}
    alone = [name for name, tensor in held.items() if tensor.read.in_rows and "blocks" in name]
    kernels = [f"attn.{name}" for name in ("k", "proj", "q", "v")] + ["mlp.out", "mlp.up"]
    assert sorted(alone) == [f"blocks.{name}.kernel" for name in kernels]
    rows: list[int] = []
    row = OrbaxArray.row
    monkeypatch.setattr(OrbaxArray, "row", lambda self, i: rows.append(i) or row(self, i))
    assert_same_params(bridge.load(run), params)
    assert sorted(rows) == sorted([0, 1] * len(alone))


# Run in its own process, because the number of devices is fixed when JAX starts.
ON_A_MESH = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from bridge.storage.orbax import read_tree
from jaxmodels.runtime.runs import checkpoint, state_io
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import State

state_io.BLOCK, mesh = 1024, make_mesh("data=4,model=2")
specs = {"a": P(None, "data", "model"), "b": P(None, None, ("data", "model")), "c": P("model"),
         "d": P()}
rng = np.random.default_rng(0)
values = {name: rng.standard_normal((6, 32, 48), np.float32) for name in specs}
put = lambda x, spec=P(): jax.device_put(x, NamedSharding(mesh, spec))
params = {name: put(values[name], spec) for name, spec in specs.items()}
keeper = checkpoint.Checkpoints(Path(sys.argv[1]), keep=1)
step, key = put(np.int32(7)), put(np.zeros(2, np.uint32))
keeper.save(State(params, {}, {"mu": params}, step, key), {}, {})
keeper.wait()
for name, tensor in read_tree(Path(sys.argv[1]) / "7" / "params")[0].items():
    assert tensor.read.in_rows, name
    np.testing.assert_array_equal(tensor.read(), values[name])
    np.testing.assert_array_equal([tensor.read.row(i) for i in range(6)], values[name])
"""


@pytest.mark.slow
def test_stacks_that_a_mesh_shares_are_read_block_by_block_too(tmp_path):
    printed(ON_A_MESH, str(tmp_path), env=simulated(8))


@pytest.mark.slow
def test_a_run_and_its_bare_parameters_open(tmp_path):
    run = write_run(tmp_path / "run", {7: None}, spec="wigip:tiny")
    params = random_params("wigip:tiny", seed=7)
    assert_same_params(bridge.load(run), params)
    shutil.copytree(run / "checkpoints" / "7" / "params", tmp_path / "bare")
    source = bridge.open_checkpoint(tmp_path / "bare")
    assert (source.arch, source.preset) == ("wigip", "tiny")
    assert source.assumed == {"objective": "next_char"}
    assert_same_params(bridge.load(tmp_path / "bare"), params)


@pytest.mark.slow
def test_the_way_through_every_format_is_bit_exact(tmp_path):
    """Run → the seed's names → model directory → the seed's names: the same numbers."""
    run = write_run(tmp_path / "run", {7: None}, spec="wigip:tiny")
    params = random_params("wigip:tiny", seed=7)
    bridge.convert(run, tmp_path / "seed", to="orbax", verify="roundtrip")
    bridge.convert(tmp_path / "seed", tmp_path / "model", verify="logits")
    bridge.convert(tmp_path / "model", tmp_path / "again", to="orbax", verify="roundtrip")
    for folder in ("seed", "model", "again"):
        assert_same_params(bridge.load(tmp_path / folder), params)
    assert bridge.open_checkpoint(tmp_path / "again").config.heads == 2
    half = params_of(bridge.load(run, dtype="bfloat16"))
    assert all(leaf.dtype == "bfloat16" for leaf in half.values())


@pytest.mark.slow
def test_heads_that_nothing_tells_must_be_given(tmp_path):
    run = write_run(tmp_path / "run", {7: None}, spec="wigip:tiny")
    bridge.convert(run, tmp_path / "model")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(tmp_path / "model" / "model.safetensors", alone)
    with pytest.raises(Problem, match="the model's heads cannot be determined"):
        bridge.open_checkpoint(alone)
    assert bridge.open_checkpoint(alone, config={"heads": 2}).assumed == {"objective": "next_char"}
    given = bridge.load(alone, config={"heads": 2})
    assert_same_params(given, random_params("wigip:tiny", seed=7))
