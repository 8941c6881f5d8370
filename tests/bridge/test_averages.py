"""Runs with two sets of weights: a conversion is compared with the set that it was made from."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from flax import nnx

import bridge
from jaxmodels import charlm
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, UNVERIFIED
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.runs.checkpoint import Checkpoints
from jaxmodels.runtime.step import State


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run with an average leaves of its model; the average is half of what is trained."""
    out = tmp_path_factory.mktemp("averaged") / "run"
    config = replace(charlm.PRESETS["tiny"], layers=1, dim=16)
    (out / "checkpoints").mkdir(parents=True)
    told = {"arch": "charlm", "preset": "tiny", "model": asdict(config), "recipe": {}}
    (out / "config.json").write_text(json.dumps(told))
    model = charlm.Model(config, rngs=nnx.Rngs(0))
    _, params, rest = split(model)
    state = State(params, rest, {}, np.int32(3), np.zeros(2, np.uint32))
    keeper = Checkpoints(out / "checkpoints", 1)
    keeper.save(state._replace(ema=jax.tree.map(lambda x: x / 2, params)), {}, {})
    keeper.wait()
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "other"), [("raw", "ema"), ("ema", "raw")])
def test_what_was_made_from_one_is_compared_with_it(run, tmp_path, choice, other):
    made, again = tmp_path / "made", tmp_path / "again"
    bridge.convert(run, made, to="orbax", weights=choice, verify="none")
    bridge.convert(run, again, weights=choice, verify="none")
    for b in (made, again) if choice == "ema" else (again,):
        assert main(["diff", str(run), str(b)]) == DONE
        assert main(["diff", str(b), str(run)]) == DONE
    assert main(["verify", str(again), "--against", str(run)]) == DONE
    assert main(["verify", str(again), "--against", str(run), "--weights", other]) == UNVERIFIED
    if other == "raw":
        assert main(["diff", str(run), str(again), "--weights", "raw"]) == UNVERIFIED


@pytest.mark.slow
def test_a_run_is_verified_and_inspected_by_either(run, capsys):
    for choice in ("raw", "ema"):
        assert main(["verify", str(run), "--weights", choice]) == DONE
        assert main(["inspect", str(run), "--weights", choice]) == DONE
