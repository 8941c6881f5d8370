"""Generation against transformers' `generate` on the PyTorch twin: `jaxmodels bench decode`.

Every contestant continues the same prompts by the same number of tokens with its cache: prefill
and decoding, without compilation; and, in the same rounds, by one token, to separate the two.
Greedy contestants must agree on the first tokens. Decoding reads every weight for every token, so
at batch 1 it is compared with the memory bandwidth measured in the same run. A bitgen is timed
with its ternary weights packed, against the same in float32.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from benchmarks.generators import INPUTS, WAYS, ours, torch_loop, transformers
from benchmarks.harness import RESULTS, Call, Contestant, Run, Timing, positive, race, save, table
from benchmarks.peers import torch_device
from data_pipelines.cores import cores
from jaxmodels.architecture import ConfigView
from jaxmodels.cli import parse, say
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.sizes import parameter_shapes

OURS = "jaxmodels"
UNPACKED = "jaxmodels, not packed"
STREAM_BYTES = 1 << 28  # read to measure the memory's bandwidth; on an accelerator eight times
FIRST = "first token"
RUNS = (
    ("--presets", "charlm:notebook", "charlm:base", "--batches", "1", "8", "32"),
    ("--presets", "wikigpt:base", "bwetaf:53m", "--batches", "1", "8", "32", "--new", "96"),
    ("--presets", "bitgen:card", "--batches", "1", "8", "--new", "96"),
)
QUICK = (
    ("--presets", "charlm:tiny", "wikigpt:tiny", "--batches", "2", "--prompt", "4", "--new", "33",
     "--rounds", "2"),
)  # fmt: skip

AGREE = 32  # greedy tokens that must be the same; later ones may differ after a near tie


@dataclass(frozen=True)
class Decode:
    """Time generation against transformers on the PyTorch twin."""

    presets: tuple[str, ...] = ("charlm:notebook", "charlm:base", "wikigpt:base")
    """ARCH:PRESET, with the context raised if prompt and new tokens do not fit."""
    batches: tuple[int, ...] = (1, 8)
    """Sequences at once."""
    prompt: int = 16
    """Tokens of each prompt."""
    new: int = 256
    """Tokens added to each."""
    rounds: int = 8
    """Timed generations of each contestant, after one that is not."""
    isolated: bool = False
    """Run each contestant in its own process; also measures its peak memory."""
    out: Path = RESULTS
    """Folder whose decode.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "batches", "prompt", "new", "rounds")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as tables."""
    options = parse(Decode, argv, "bench decode")
    records = []
    for spec in options.presets:
        for batch in options.batches:
            for way in WAYS:
                records += _case(options, spec, batch, way)
    return records


def _case(options: Decode, spec: str, batch: int, way: str) -> list[dict[str, Any]]:
    arch, _, config = jaxmodels.preset(spec)
    config = replace(config, context=max(config.context, options.prompt + options.new))
    if ConfigView(config).tokens is not None:  # transformers draws what pads the vocabulary as well
        config = replace(config, tokens=config.vocab)
    size = (batch, options.prompt, options.new)
    contestants = _contestants(arch, config, size, way)
    say(f"{spec}, batch {batch}, {way}")
    settings = {
        "context": config.context,
        "prompt": options.prompt,
        "new_tokens": options.new,
        "sampling": WAYS[way]._asdict(),
        "dtype": "float32",
        "threads": cores(),
        "isolated": options.isolated,
        "warmup": 1,
        "inputs": INPUTS,
    }
    run = Run("decode", settings)
    reading = race([Contestant("read", read_memory)], options.rounds)[0]
    read = reading.value / min(reading.seconds)
    raced = race(contestants, options.rounds, warmup=1, isolated=options.isolated)
    timings, first = (
        raced[::2],
        {one.name: two for one, two in zip(raced[::2], raced[1::2], strict=True)},
    )
    agreed = {timing.name: agreement(timings[0], timing) for timing in timings}
    if way == "greedy" and min(agreed.values()) < min(AGREE, options.new):
        raise Problem(
            "greedy contestants generate different tokens",
            where=f"{spec}, batch {batch}: {agreed}",
            why=f"at least the first {AGREE} must be the same",
            exit_code=UNVERIFIED,
        )

    def extra(timing: Timing) -> dict[str, Any]:
        seconds = float(np.median(timing.seconds))
        token = per_token(timing, first[timing.name], options.new)
        weights = weight_bytes(arch, config, packed=timing.name != UNPACKED)
        same = {"greedy_tokens_agreed": agreed[timing.name]} if way == "greedy" else {}
        return {
            "tokens_per_second": batch * options.new / seconds,
            "first_token_ms": 1e3 * float(np.median(first[timing.name].seconds)),
            "ms_per_token": token and 1e3 * token,
            "weight_bytes_per_token": weights,
            "memory_bytes_per_second": read,
            "share_of_bandwidth": options.new / seconds * weights / read,
            "share_of_bandwidth_decoding": token and weights / token / read,
            **same,
        }

    records = run.records(f"{spec} batch {batch} {way}", timings, extra)
    say(f"added to {save(records, options.out)}")
    print(f"\n### {records[0]['case']}: {options.prompt} + {options.new} tokens, {cores()} threads")
    print(
        f"memory is read at {read / 1e9:.1f} GB/s; a token reads "
        f"{weight_bytes(arch, config) / 1e6:.1f} MB of weights"
    )
    columns = {
        "tokens_per_second": "tokens/s",
        "first_token_ms": "first token ms",
        "ms_per_token": "ms per further token",
        "share_of_bandwidth_decoding": "share of bandwidth, decoding",
        "peak_bytes": "peak bytes",
    }
    print(table(records, columns), flush=True)
    return records


def _contestants(arch: str, config: Any, size: tuple[int, int, int], way: str) -> list[Contestant]:
    """Each for all tokens, and for the first alone."""
    found: list[tuple[str, Any]] = [(OURS, partial(ours, arch, config))]
    if arch == "bitgen":
        found.append((UNPACKED, partial(ours, arch, config, packed=False)))
    elif device := torch_device():
        found.append(("transformers generate", partial(transformers, arch, config, device)))
        found.append(("PyTorch loop", partial(torch_loop, arch, config, device)))
    return [
        Contestant(name if new > 1 else f"{name}, {FIRST}", partial(make, (*size[:2], new), way))
        for name, make in found
        for new in (size[2], 1)
    ]


def per_token(all_tokens: Timing, first: Timing, new: int) -> float | None:
    """Median seconds for each token after the first; None for a single token."""
    pairs = zip(all_tokens.seconds, first.seconds, strict=True)
    return float(np.median([max(0.0, a - b) for a, b in pairs])) / (new - 1) if new > 1 else None


def agreement(one: Timing, other: Timing) -> int:
    """Length of the longest common prefix in tokens, the minimum over rows."""
    same = np.asarray(one.value) == np.asarray(other.value)
    return int(np.where(same.all(axis=1), same.shape[1], same.argmin(axis=1)).min())


def weight_bytes(arch: str, config: Any, packed: bool = True) -> int:
    """Bytes of weights read for every token: all but embeddings, of which it reads a row; float32.

    A bitgen reads its decoder and the head; packed ternary weights take a quarter of a byte.
    """
    shapes = parameter_shapes(arch, config)
    if arch == "bitgen":
        head = 4 * prod(shapes["embed/embedding"])
        decoder = {path: shape for path, shape in shapes.items() if path.startswith("decoder/")}
        return head + sum(
            prod(shape) // 4 if packed and path.endswith("/kernel") else 4 * prod(shape)
            for path, shape in decoder.items()
        )
    tied = not any(path.startswith("head/") for path in shapes)
    rows = {"pos/embedding"} | (set() if tied else {"embed/embedding"})
    return sum(4 * prod(shape) for path, shape in shapes.items() if path not in rows)


def read_memory() -> Call:
    """Sums an array too large for caches on all cores; returns its bytes."""
    import jax
    import jax.numpy as jnp

    size = STREAM_BYTES * (1 if jax.default_backend() == "cpu" else 8)
    array, total = jnp.ones(size // 4, jnp.float32), jax.jit(jnp.sum)

    def call(index: int) -> int:
        total(array).block_until_ready()
        return size

    return call
