"""The contestants of `benchmarks.decode`: ours, transformers' `generate`, a plain loop."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxmodels
from benchmarks.harness import Call
from benchmarks.peers import twin_with
from jaxmodels.layers.keys import keys
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import generate
from jaxmodels.runtime.paths import split

INPUTS = 4  # different prompts, used in turn
WAYS = {"greedy": Sampling(None), "sampled": Sampling(0.8, top_k=50)}


def _model(arch: str, config: Any) -> Any:
    """A model whose tokens depend on every matrix: a fresh one is almost uniform."""
    model = jaxmodels.arch(arch).Model(config, rngs=keys(default=0))
    graphdef, params, rest = split(model)
    rng = np.random.default_rng(0)
    moved = {
        path: jnp.asarray(leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32))
        for path, leaf in params.items()
    }
    return graphdef.merge(moved, rest)


def _prompts(config: Any, size: tuple[int, int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return list(rng.integers(2, config.vocab, (INPUTS, *size[:2]), np.int32))


def ours(arch: str, config: Any, size: tuple[int, int, int], way: str, packed: bool = True) -> Call:
    """`jaxmodels.runtime.generate`, in chunks as the command prints it; new tokens [b, n].

    Ternary weights are packed first, unless `packed` is off.
    """
    model, prompts = _model(arch, config), _prompts(config, size)
    if packed and (pack := jaxmodels.arch(arch).pack):
        model = pack(model)

    def call(index: int) -> np.ndarray:
        pieces = generate(model, prompts[index % INPUTS], size[2], WAYS[way], seed=index)
        return np.concatenate(list(pieces), axis=1)

    return call


def transformers(arch: str, config: Any, device: str, size: tuple[int, int, int], way: str) -> Call:
    """transformers' own `generate` on the twin, with its default cache; new tokens [b, n]."""
    import torch

    module, prompts = _twin(arch, config, device), _torch_prompts(config, size, device)
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
        new: np.ndarray = out[:, size[1] :].cpu().numpy()
        return new

    return call


def torch_loop(arch: str, config: Any, device: str, size: tuple[int, int, int], way: str) -> Call:
    """The twin in a minimal loop over its cache, for reference; new tokens [b, n]."""
    import torch

    module, prompts = _twin(arch, config, device), _torch_prompts(config, size, device)
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
        new: np.ndarray = torch.cat(drawn, 1).cpu().numpy()
        return new

    return call


def _twin(arch: str, config: Any, device: str) -> Any:
    return twin_with(arch, config, split(_model(arch, config))[1], device)


def _torch_prompts(config: Any, size: tuple[int, int, int], device: str) -> list[Any]:
    import torch

    return [torch.from_numpy(prompt).long().to(device) for prompt in _prompts(config, size)]
