"""A ternary linear layer against transformers' BitNet: `jaxmodels bench ternary`.

The layer of BitNet b1.58 with its norm, on the same rows: with packed weights, four to a byte, in
the same layout on both sides; and as trained, with weights rounded at each call (transformers'
`BitLinear` and `AutoBitLinear`). All must give the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.batches import BATCHES
from benchmarks.harness import (
    RESULTS,
    Call,
    Contestant,
    Run,
    Timing,
    positive,
    race,
    relative_errors,
    save,
    table,
)
from benchmarks.peers import synchronize, torch_device
from data_pipelines.cores import cores
from jaxmodels.bitgen.bitlinear import BitLinear, PackedLinear
from jaxmodels.cli import parse, say
from jaxmodels.layers.keys import keys

OURS = "jaxmodels"
RUNS = ((),)
QUICK = (
    ("--inward", "64", "--outward", "128", "--rows", "1", "2", "--rounds", "3", "--no-compile"),
)

# Largest difference of the outputs, relative to their maximum: another order of summation in the
# norm may round an input to a neighbouring 8-bit level.
MAX_ERROR = 5e-3


class Size(NamedTuple):
    """The sizes of a round: calls of a layer on so many tokens."""

    inward: int
    outward: int
    rows: int
    times: int


@dataclass(frozen=True)
class Ternary:
    """Time a ternary linear layer against transformers' BitNet with the same weights."""

    inward: int = 1024
    """Inputs of the layer."""
    outward: int = 4096
    """Outputs of the layer."""
    rows: tuple[int, ...] = (1, 8, 256)
    """Tokens at once."""
    times: int = 10
    """Consecutive calls of the layer in a round."""
    rounds: int = 20
    """Timed rounds of each contestant, after two that are not."""
    compile: bool = True
    """Let transformers compile its functions, as it does by default."""
    out: Path = RESULTS
    """Folder whose ternary.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "inward", "outward", "rows", "times", "rounds")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints a table for each number of rows.

    Raises:
        Problem: (verification) the contestants give different outputs.
    """
    options = parse(Ternary, argv, "bench ternary")
    made = []
    for rows in options.rows:
        settings = {"batch": rows, "dtype": "float32", "times": options.times, "threads": cores()}
        run = Run("ternary", settings)
        timings = race(_contestants(options, rows), options.rounds)
        made += _records(options, run, timings, relative_errors(timings, MAX_ERROR, "outputs"))
    say(f"added to {save(made, options.out)}")
    return made


def _records(
    options: Ternary, run: Run, timings: list[Timing], differences: dict[str, float]
) -> list[dict[str, Any]]:
    def extra(timing: Timing) -> dict[str, Any]:
        seconds = float(np.median(timing.seconds)) / options.times
        return {"us_per_call": 1e6 * seconds, "difference": differences[timing.name]}

    rows, case = run.settings["batch"], f"{options.inward} × {options.outward}"
    records = run.records(f"{case}, {rows} rows", timings, extra)
    print(f"\n### A ternary layer of {case}, {rows} rows, {options.times} calls")
    print(table(records, {"us_per_call": "µs a call"}), flush=True)
    return records


def _contestants(options: Ternary, rows: int) -> list[Contestant]:
    size = Size(options.inward, options.outward, rows, options.times)
    found = [
        Contestant(OURS, partial(ours, size, True)),
        Contestant(f"{OURS}, as trained", partial(ours, size, False)),
    ]
    device = torch_device()
    if device and options.outward % 4:
        say("transformers packs outputs in fours only: measured without it")
        device = None
    if device:
        for name in ("BitLinear", "AutoBitLinear"):
            make = partial(theirs, size, name, options.compile, device)
            found.append(Contestant(f"transformers {name}", make))
    return found


def _layer(size: Size) -> BitLinear:
    return BitLinear(size.inward, size.outward, rngs=keys(default=0))


def _inputs(size: Size) -> list[np.ndarray]:
    shape = (BATCHES, size.rows, size.inward)
    return list(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def ours(size: Size, packed: bool) -> Call:
    """Our layer, compiled; returns the output of the last call, float32 [rows, outward]."""
    layer = PackedLinear(_layer(size)) if packed else _layer(size)
    graph, state = nnx.split(layer)
    # Weights are arguments: the compiler would unpack constants once.
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    inputs = [jnp.asarray(rows) for rows in _inputs(size)]

    def call(index: int) -> np.ndarray:
        for _ in range(size.times):
            out = forward(state, inputs[index % BATCHES])
        return np.asarray(out)

    return call


def theirs(size: Size, name: str, compiled: bool, device: str) -> Call:
    """transformers' layer with the same weights; returns the same."""
    import torch
    from transformers.integrations import bitnet

    torch.set_num_threads(cores())
    layer, packed = _layer(size), PackedLinear(_layer(size))
    settings: dict[str, Any] = {"bias": False, "dtype": torch.float32, "use_rms_norm": True}
    if name == "BitLinear":
        module: Any = bitnet.BitLinear(size.inward, size.outward, **settings)
        module.weight = torch.tensor(np.asarray(packed.packed[...]))
        module.weight_scale = torch.tensor([1 / float(packed.scale[...])])
    else:
        module = bitnet.AutoBitLinear(size.inward, size.outward, online_quant=True, **settings)
        module.weight.data = torch.tensor(np.asarray(layer.kernel[...]).T.copy())
    module = module.to(device)
    inputs = [torch.from_numpy(rows).to(device) for rows in _inputs(size)]

    @torch.inference_mode()
    def call(index: int) -> np.ndarray:
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            for _ in range(size.times):
                out = module(inputs[index % BATCHES])
        synchronize(device)
        result: np.ndarray = out.cpu().numpy()
        return result

    return call
