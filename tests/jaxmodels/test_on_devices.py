"""On several devices: the average of the weights, also of stacked blocks; evaluations."""

import json
from math import isfinite

import pytest

from tests.children import printed, simulated

AVERAGE = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np
import bridge, jaxmodels
from jaxmodels.runtime.runs.checkpoint import Checkpoints
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.sharding import fetch, make_mesh, put_batch
from jaxmodels.runtime.step import init, train_step
from jaxmodels.runtime.runs.state_io import restore

package = jaxmodels.arch("wigip")
config = replace(package.PRESETS["tiny"], objective="dense")
recipe = replace(package.RECIPES["tiny"], ema_decay=0.5, batch=4, accum=2)
tx = optimiser(recipe.optim, lambda _: 0.1)

def begun(spec):
    mesh = make_mesh(spec)
    skeleton, fresh, abstract = init(package, config, recipe, tx, mesh)
    return mesh, fresh, train_step(package, skeleton, tx, lambda _: 0.1, recipe, abstract), abstract

mesh, fresh, step, _ = begun("data=2,model=2")
tokens = np.random.default_rng(0).integers(0, config.vocab, (8, config.context + 1))
state, mean, found = fresh(), None, {}
for t in range(4):
    state, _ = step(state, put_batch({"tokens": tokens.astype(np.int32)}, mesh, 8))
    now = {path: fetch(x).astype(np.float64) for path, x in state.params.items()}
    keep = min(0.5, (1 + t) / (10 + t)) if t else 0
    mean = {path: keep * mean[path] + (1 - keep) * x if t else x for path, x in now.items()}
found["by definition"] = max(abs(fetch(x) - mean[path]).max() for path, x in state.ema.items())
found["moved"] = max(abs(fetch(x) - now[path]).max() for path, x in state.ema.items())
found["placed"] = all(
    x.sharding.is_equivalent_to(state.params[path].sharding, x.ndim)
    for path, x in state.ema.items()
)
folder = Path(tempfile.mkdtemp())
(folder / "run").mkdir()
(folder / "run/config.json").write_text(json.dumps({"arch": "wigip", "model": vars(config)}))
keeper = Checkpoints(folder / "run/checkpoints", 1)
keeper.save(state, {}, {})
keeper.wait()
back = restore(folder / "run/checkpoints/4", begun("data=4")[3]).state
same = lambda a, b: all((fetch(a[path]) == fetch(x)).all() for path, x in b.items())
found["restored on another mesh"] = same(back.ema, state.ema) and same(back.params, state.params)
for choice, kept in (("ema", state.ema), ("raw", state.params)):
    tensors = bridge.open_checkpoint(folder / "run/checkpoints/4", weights=choice).tensors
    joined = {}
    for path, tensor in tensors.items():
        first, _, rest = path.partition("/")
        number, _, name = rest.partition("/")
        stacked = first == "blocks" and number.isdecimal()
        own = fetch(kept[f"blocks/{name}"])[int(number)] if stacked else fetch(kept[path])
        joined[path] = bool((tensor.read() == own).all())
    found[choice] = [len(joined), all(joined.values())]
print(json.dumps({k: v if isinstance(v, (bool, list)) else float(v) for k, v in found.items()}))
"""


@pytest.mark.slow
def test_the_average_of_stacked_blocks_on_a_mesh():
    found = json.loads(printed(AVERAGE, env=simulated(4)))
    assert found["by definition"] < 1e-6 < found["moved"]
    assert found["placed"]
    assert found["restored on another mesh"]
    assert found["ema"] == found["raw"]
    assert found["ema"][1]


EVALUATED = """
import json, sys
from functools import partial
import jax
from flax import nnx
import jaxmodels
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.sharding import make_mesh, param_shardings
from tests.contract import smallest
from tests.jaxmodels.test_evaluation_groups import rows

package, config = jaxmodels.arch("bitgen"), smallest("bitgen")
skeleton, params, rest = split(nnx.jit(partial(package.Model, config))(rngs=nnx.Rngs(0)))
mesh = make_mesh("data=2,model=2")
placed = jax.device_put(params, param_shardings(mesh, package.SHARDING, params))
loss = loss_function(package, skeleton, mesh)
print(json.dumps(evaluate(loss, placed, rest, [rows(config)])))
"""


@pytest.mark.slow
def test_captions_are_evaluated_on_more_devices_than_cores():
    """Four simulated ones: threads of XLA's pool that waited for each other never ended."""
    found = json.loads(printed(EVALUATED, env=simulated(4), timeout=120))
    assert {"loss", "text_loss", "itm_acc"} <= found.keys()
    assert all(map(isfinite, found.values()))
