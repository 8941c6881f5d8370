"""bitgen_stage1 with the weights of its golden outputs, which follow from a rule."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxmodels
from bridge.core.ops import OPS
from bridge.core.table import pairs
from jaxmodels.dinov2.config import Config as Tower
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline

GOLDEN = Path(__file__).parents[1] / "golden" / "bitgen_stage1"
TOWER = Tower(dim=48, layers=2, heads=4, hidden=192, image_size=224, interpolation="size")
CONFIG = replace(
    jaxmodels.arch("bitgen_stage1").PRESETS["card"], vocab=97, dropout=0.0, dinov2=TOWER
)


@cache
def state_dict() -> dict[str, np.ndarray]:
    """The seed's name → array, by the rule in weights.json."""
    said, state = json.loads((GOLDEN / "weights.json").read_text()), {}
    for i, (name, entry) in enumerate(sorted(said["tensors"].items())):
        shape, scale, offset = entry
        drawn = np.random.default_rng([said["seed"], i]).standard_normal(shape)
        values = (drawn * scale + offset).astype(np.float32)
        if name.endswith("_queue"):
            exact = values.astype(np.float64)
            values = (exact / np.linalg.norm(exact, axis=0)).astype(np.float32)
        if name.endswith("write_count"):
            values = (np.arange(shape[0]) * 7 % shape[0] + 3).astype(np.float32)
        if name.endswith("queue_ptr"):
            values = values.astype(np.int64)
        state[name] = values
    return state


def parts(dtype: type = np.float32) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Skeleton, parameters and other state of the golden model; floats in this dtype."""
    package = jaxmodels.arch("bitgen_stage1")
    graphdef, params, rest = split(outline(package, CONFIG))
    state, values = dict(state_dict()), {}
    for pair in pairs(package.UPSTREAM, [*params, *rest]):
        shape = (params | rest)[pair.ours].shape
        array = OPS[pair.op].inverse(state.pop(pair.theirs)).reshape(shape)
        values[pair.ours] = jnp.asarray(array if array.dtype == np.int32 else array.astype(dtype))
    assert not state
    return graphdef, {p: values[p] for p in params}, {p: values[p] for p in rest}


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def images(*names: str) -> np.ndarray:
    """Golden images [b, y, x, 3], which are kept as multiples of 2^-24 in three bytes each."""
    packed = np.concatenate([load(name)["images"] for name in names]).astype(np.uint32)
    whole = packed[..., 0] | packed[..., 1] << 8 | packed[..., 2] << 16
    return (whole.astype(np.float32) / np.float32(2**24)).transpose(0, 2, 3, 1)
