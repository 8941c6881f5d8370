"""Generation against transformers' `generate` on the PyTorch twin: `python -m benchmarks.decode`.

Every contestant continues the same prompts by the same number of tokens with its cache: prefill
and decoding, without compilation. Greedy contestants must agree on the first tokens. Decoding reads
every weight for every token, so memory bandwidth, measured in the same run, is the limit that it is
held to at batch 1.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from benchmarks.harness import RESULTS, Call, Contestant, Run, Timing, cores, race, save, table
from benchmarks.peers import twin_with
from bridge.sources import parameter_shapes
from jaxmodels.cli import parse, say
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import generate
from jaxmodels.runtime.paths import split

OURS = "jaxmodels"
INPUTS = 4  # different prompts, taken in turn
STREAM_BYTES = 1 << 28  # read to measure the memory's bandwidth
AGREE = 32  # greedy tokens that must be the same; later ones may part at a near tie
WAYS = {"greedy": Sampling(None), "sampled": Sampling(0.8, top_k=50)}


@dataclass(frozen=True)
class Decode:
    """Time generation against transformers on the PyTorch twin."""

    presets: tuple[str, ...] = ("charlm:notebook", "charlm:base", "wikigpt:base")
    """ARCH:PRESET, with the context raised where it does not hold prompt and new tokens."""
    batches: tuple[int, ...] = (1, 8)
    """Sequences at once."""
    prompt: int = 16
    """Tokens of each prompt."""
    new: int = 256
    """Tokens added to each."""
    rounds: int = 8
    """Generations of each contestant that count, after one that does not."""
    isolated: bool = False
    """Give each contestant a process of its own; also tells its peak memory."""
    out: Path = RESULTS
    """Folder whose decode.jsonl the results are added to."""


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
    if hasattr(config, "tokens"):  # transformers draws what pads the vocabulary as well
        config = replace(config, tokens=config.vocab)
    size = (batch, options.prompt, options.new)
    contestants = [
        Contestant(OURS, partial(ours, arch, config, size, way)),
        Contestant("transformers generate", partial(transformers, arch, config, size, way)),
        Contestant("PyTorch loop", partial(torch_loop, arch, config, size, way)),
    ]
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
    stream = min(race([Contestant("read", read_memory)], options.rounds)[0].seconds)
    read = STREAM_BYTES / stream
    weights = weight_bytes(arch, config)
    timings = race(contestants, options.rounds, warmup=1, isolated=options.isolated)
    agreed = {timing.name: agreement(timings[0], timing) for timing in timings}
    if way == "greedy" and min(agreed.values()) < min(AGREE, options.new):
        raise Problem(
            "greedy contestants write different tokens",
            where=f"{spec}, batch {batch}: {agreed}",
            why=f"at least the first {AGREE} must be the same",
            exit_code=UNVERIFIED,
        )

    def extra(timing: Timing) -> dict[str, Any]:
        rate = batch * options.new / float(np.median(timing.seconds))
        same = {"greedy_tokens_agreed": agreed[timing.name]} if way == "greedy" else {}
        return {
            "tokens_per_second": rate,
            "weight_bytes_per_token": weights,
            "memory_bytes_per_second": read,
            "share_of_bandwidth": rate / batch * weights / read,
            **same,
        }

    records = run.records(f"{spec} batch {batch} {way}", timings, extra)
    say(f"added to {save(records, options.out)}")
    print(f"\n### {records[0]['case']}: {options.prompt} + {options.new} tokens, {cores()} threads")
    print(
        f"memory is read at {read / 1e9:.1f} GB/s; a token reads {weights / 1e6:.1f} MB of weights"
    )
    columns = {
        "tokens_per_second": "tokens/s",
        "share_of_bandwidth": "share of bandwidth",
        "peak_bytes": "peak bytes",
    }
    print(table(records, columns), flush=True)
    return records


def agreement(one: Timing, other: Timing) -> int:
    """How many tokens are the same from the start, in the row that parts first."""
    same = np.asarray(one.value) == np.asarray(other.value)
    return int(np.where(same.all(axis=1), same.shape[1], same.argmin(axis=1)).min())


def weight_bytes(arch: str, config: Any) -> int:
    """Bytes of float32 weights that every token needs: all but tables of which it reads a row."""
    shapes = parameter_shapes(arch, config)
    tied = not any(path.startswith("head/") for path in shapes)
    rows = {"pos/embedding"} | (set() if tied else {"embed/embedding"})
    return sum(4 * prod(shape) for path, shape in shapes.items() if path not in rows)


def read_memory() -> Call:
    """Reads an array that no cache holds, by a sum over all cores."""
    import jax
    import jax.numpy as jnp

    array, total = jnp.ones(STREAM_BYTES // 4, jnp.float32), jax.jit(jnp.sum)
    return lambda index: float(total(array))


def _model(arch: str, config: Any) -> Any:
    """A model whose every matrix has a say in the tokens: the fresh one is almost uniform."""
    model = jaxmodels.arch(arch).Model(config, rngs=_rngs())
    skeleton, params, rest = split(model)
    rng = np.random.default_rng(0)
    moved = {
        path: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in params.items()
    }
    return skeleton.merge(moved, rest)


def _rngs() -> Any:
    from flax import nnx

    return nnx.Rngs(0)


def _prompts(config: Any, size: tuple[int, int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return list(rng.integers(2, config.vocab, (INPUTS, *size[:2]), np.int32))


def ours(arch: str, config: Any, size: tuple[int, int, int], way: str) -> Call:
    """`jaxmodels.runtime.generate`, piece by piece as the command prints it; new tokens [b, n]."""
    model, prompts = _model(arch, config), _prompts(config, size)

    def call(index: int) -> np.ndarray:
        pieces = generate(model, prompts[index % INPUTS], size[2], WAYS[way], seed=index)
        return np.concatenate(list(pieces), axis=1)

    return call


def transformers(arch: str, config: Any, size: tuple[int, int, int], way: str) -> Call:
    """transformers' own `generate` on the twin, with its default cache; new tokens [b, n]."""
    import torch

    module, prompts = _twin(arch, config), _torch_prompts(config, size)
    sampling = WAYS[way]
    settings: dict[str, Any] = {"do_sample": False}
    if sampling.temperature is not None:
        settings = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
        }

    def call(index: int) -> np.ndarray:
        torch.manual_seed(index)
        tokens = prompts[index % INPUTS]
        out = module.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=size[2],
            pad_token_id=0,
            **settings,
        )
        return out[:, size[1] :].numpy()

    return call


def torch_loop(arch: str, config: Any, size: tuple[int, int, int], way: str) -> Call:
    """The twin in the plainest loop over its cache, for reference; new tokens [b, n]."""
    import torch

    module, prompts = _twin(arch, config), _torch_prompts(config, size)
    sampling = WAYS[way]

    def draw(logits: torch.Tensor) -> torch.Tensor:
        if sampling.temperature is None:
            return logits.argmax(-1, keepdim=True)
        top, ids = (logits / sampling.temperature).topk(min(sampling.top_k or 0, logits.shape[-1]))
        return ids.gather(-1, torch.multinomial(top.softmax(-1), 1))

    @torch.inference_mode()
    def call(index: int) -> np.ndarray:
        torch.manual_seed(index)
        token, cache, drawn = prompts[index % INPUTS], None, []
        for _ in range(size[2]):
            out = module(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = draw(out.logits[:, -1])
            drawn.append(token)
        return torch.cat(drawn, 1).numpy()

    return call


def _twin(arch: str, config: Any) -> Any:
    return twin_with(arch, config, split(_model(arch, config))[1])


def _torch_prompts(config: Any, size: tuple[int, int, int]) -> list[Any]:
    import torch

    return [torch.from_numpy(prompt).long() for prompt in _prompts(config, size)]


if __name__ == "__main__":
    main(sys.argv[1:])
