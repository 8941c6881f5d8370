"""What every PyTorch twin of a language model is held to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

# Isolated from our packages: what a PyTorch user has who got nothing but the folder.
_ALONE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "jaxmodels", "bridge"):
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
import torch
torch.set_num_threads(1)
"""


def alone(code: str, folder: Path) -> Any:
    """What `code` leaves in `result`, run in `folder` without our packages and without network."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{_ALONE}{code}\nprint('\\n' + json.dumps(result))"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_generation(module: Any, tokens: torch.Tensor, new: int) -> None:
    """With and without a cache, `generate` writes the same tokens."""
    calls = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
    cached, plain = (module.generate(tokens, use_cache=use, **calls) for use in (True, False))
    assert cached.shape == (tokens.shape[0], tokens.shape[1] + new)
    assert torch.equal(cached, plain)


def check_left_padding(module: Any, tokens: torch.Tensor) -> None:
    """Padding before the tokens changes neither logits nor what is generated."""
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), tokens], 1)
    mask = (torch.arange(15) >= 4).long().expand(3, -1).clone()
    mask[0] = (torch.arange(15) >= 2).long()
    difference = module(padded, attention_mask=mask).logits[1:, 4:] - module(tokens).logits[1:]
    assert difference.abs().max() <= 1e-5
    calls = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0}
    both = [
        module.generate(padded, attention_mask=mask, use_cache=use, **calls)
        for use in (True, False)
    ]
    assert torch.equal(*both)
    assert torch.equal(both[0][1:, 4:], module.generate(tokens, **calls)[1:])


def check_cache_step_by_step(module: Any, tokens: torch.Tensor) -> None:
    """Token by token with a cache, the logits are those of one pass."""
    cache, steps = None, []
    for t in range(tokens.shape[1]):
        out = module(tokens[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert (torch.cat(steps, 1) - module(tokens).logits).abs().max() <= 1e-5
    assert module(tokens, logits_to_keep=1).logits.shape == (len(tokens), 1, 64)


def check_one_hundred_adamw_steps(
    loss: Callable[..., Any], model: tuple[Any, Any, Any], module: Any, **settings: Any
) -> None:
    """The same weights and batches give the same losses on both sides, within 1e-4.

    Args:
        loss: our loss.
        model: our skeleton, parameters and other state.
        module: the twin, with the same weights.
        settings: b1, b2, eps and weight_decay of AdamW.
    """
    graphdef, params, rest = model
    module.train()
    batches = np.random.default_rng(0).integers(0, 64, (100, 4, 17))
    transform = optax.adamw(1e-3, **settings)

    @jax.jit
    def step(params, state, tokens):
        value, grads = jax.value_and_grad(
            lambda p: loss(graphdef.merge(p, rest), {"tokens": tokens}, None)[0]
        )(params)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    betas = settings.pop("b1"), settings.pop("b2")
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=betas, **settings)
    state, ours, theirs = transform.init(params), [], []
    for batch in batches:
        params, state, value = step(params, state, jnp.asarray(batch))
        ours.append(float(value))
        tokens = torch.from_numpy(batch)
        out = module(tokens, labels=tokens).loss
        optimiser.zero_grad()
        out.backward()
        optimiser.step()
        theirs.append(out.item())
    assert np.abs(np.subtract(ours, theirs)).max() <= 1e-4
    assert np.ptp(ours) > 1e-4
