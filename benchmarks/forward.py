"""DINOv2's features of images, against transformers' class: `jaxmodels bench forward`.

Same weights, same images (of the size that the positions were learned for, or another, to which
both interpolate alike), float32 or bfloat16 on both sides; the first outputs must agree.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxmodels
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
from benchmarks.peers import torch_device, twin_with
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.layers.keys import keys
from jaxmodels.runtime.paths import split

OURS = "jaxmodels"
RUNS = (
    ("--preset", "dinov2:small", "--batch", "8", "--rounds", "10"),
    ("--preset", "dinov2:base", "--batch", "4", "--rounds", "10"),
)
QUICK = (("--preset", "dinov2:tiny", "--side", "56", "--rounds", "3", "--no-compile"),)

# Largest difference of the outputs, relative to their maximum: rounding only.
MAX_ERROR = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Forward:
    """Time the features of images against transformers' class with the same weights."""

    preset: str = "dinov2:base"
    """ARCH:PRESET of an architecture that takes images only."""
    batch: int = 4
    """Images at once."""
    side: int = 224
    """Width and height of the images in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""
    rounds: int = 10
    """Timed calls of each contestant, after two that are not."""
    compile: bool = True
    """Also time transformers' class under torch.compile."""
    isolated: bool = False
    """Run each contestant in its own process; also measures its peak memory."""
    out: Path = RESULTS
    """Folder whose forward.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "batch", "side", "rounds")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Forward, argv, "bench forward")
    arch, _, config = jaxmodels.preset(options.preset)
    # As transformers' class interpolates positions, so that both compute the same.
    kind = "antialias" if config.registers else "size"
    config = replace(config, interpolation=kind)
    size = (options.batch, options.side, options.side, 3)
    contestants = [Contestant(OURS, partial(ours, arch, config, size, options.dtype))]
    device = torch_device()
    for compiled in (False, True)[: 1 + options.compile]:
        if device is None:
            break
        make = partial(theirs, arch, config, size, options.dtype, compiled, device)
        contestants.append(Contestant(f"PyTorch {'compiled' if compiled else 'eager'}", make))
    settings = {
        "batch": options.batch,
        "side": options.side,
        "dtype": options.dtype,
        "threads": cores(),
        "isolated": options.isolated,
        "warmup": 2,
        "inputs": BATCHES,
    }
    run = Run("forward", settings)
    say(f"{options.preset}, {options.batch} images of {options.side} × {options.side}")
    timings = race(contestants, options.rounds, isolated=options.isolated)
    differences = relative_errors(timings, MAX_ERROR[options.dtype], "features")

    def extra(timing: Timing) -> dict[str, Any]:
        return {
            "images_per_second": options.batch / float(np.median(timing.seconds)),
            "difference": differences[timing.name],
        }

    records = run.records(f"{options.preset} {options.side} px", timings, extra)
    say(f"added to {save(records, options.out)}")
    print(f"\n### {records[0]['case']}, {options.batch} images, {options.dtype}")
    columns = {"images_per_second": "images/s", "compile_ms": "compile ms"}
    print(table(records, columns), flush=True)
    return records


def _images(size: tuple[int, int, int, int]) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(BATCHES, *size)).astype(np.float32))


def _parts(arch: str, config: Any) -> Any:
    """Graph definition, parameters and other state of a fresh model, for both sides."""
    graphdef, params, rest = split(jaxmodels.arch(arch).Model(config, rngs=keys(default=0)))
    return graphdef, params, rest


def ours(arch: str, config: Any, size: tuple[int, int, int, int], dtype: str) -> Call:
    """Our model, compiled; returns the class token's features, float32 [b, d]."""
    graphdef, params, rest = _parts(arch, config)
    images = _images(size)

    @jax.jit
    def features(params: Any, images: Any) -> Any:
        cast = {path: leaf.astype(dtype) for path, leaf in params.items()}
        return graphdef.merge(cast, rest)(images)[:, 0].astype(jnp.float32)

    return lambda index: np.asarray(features(params, images[index % BATCHES]))


def theirs(
    arch: str, config: Any, size: tuple[int, int, int, int], dtype: str, compiled: bool, device: str
) -> Call:
    """transformers' class; returns the class token's features, float32 [b, d]."""
    import torch

    module = twin_with(arch, config, _parts(arch, config)[1], device).to(getattr(torch, dtype))
    forward = torch.compile(module, dynamic=False) if compiled else module
    pixels = [
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device, getattr(torch, dtype))
        for images in _images(size)
    ]

    @torch.inference_mode()
    def call(index: int) -> np.ndarray:
        out = forward(pixel_values=pixels[index % BATCHES]).last_hidden_state
        features: np.ndarray = out[:, 0].float().cpu().numpy()
        return features

    return call
