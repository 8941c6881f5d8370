"""Peers: the PyTorch twins, with the same sizes, weights and batches; a seed's own code.

They compute where JAX does: on the GPU, if there is one that PyTorch can use.
"""

import importlib
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import jaxmodels
from benchmarks.harness import Call
from data_pipelines.cores import cores
from jaxmodels.cli import say
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Recipe


def torch_device() -> str | None:
    """JAX's device for PyTorch: "cpu" or "cuda"; None, with a message, if it cannot use it."""
    import jax

    if find_spec("torch") is None:
        say("PyTorch is not installed: measured without it")
        return None
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    import torch

    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    say(f"PyTorch cannot use JAX's device ({backend}): measured without it")
    return None


def synchronize(device: str) -> None:
    """Waits for PyTorch's pending work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def twin_with(arch: str, config: Any, arrays: dict[str, Any], device: str = "cpu") -> Any:
    """The PyTorch twin of a model with these arrays (path → array), in eval mode.

    Sets torch's threads to the available cores, as many as XLA takes.
    """
    import torch

    from bridge.core.twins import twin
    from bridge.torch.loading import state_dict
    from jaxmodels.runtime.paths import unstack

    arrays = unstack(arrays, jaxmodels.arch(arch).SCANNED)
    torch.set_num_threads(cores())
    tensors = {path: _tensor(path, np.asarray(leaf)) for path, leaf in arrays.items()}
    module = twin(arch).build(config)
    module.load_state_dict(state_dict(arch, config, tensors), strict=True)
    return module.eval().to(device)


def _tensor(path: str, array: np.ndarray) -> Any:
    from bridge.core.tensors import Tensor

    return Tensor(path, array.shape, array.dtype, lambda: array)


def seed_bwetaf(
    package: Path, config: Any, recipe: Recipe, params: dict[str, Any], inputs: list[np.ndarray]
) -> Call:
    """The train step of seed 003's own package, by its own model and loss and optax's AdamW.

    The step around them is ours, since the package has none outside its training loop: one compiled
    function with the old state donated, without the statistics of that loop. The settings are those
    of its model card: no chunks, attention recomputed in the backward pass.

    Args:
        package: the folder that holds the package `BwETAF`, unpacked from PyPI (0.5.1).
        config: the sizes.
        recipe: the optimiser's settings, and the precision of parameters.
        params: path → array to start from.
        inputs: batches of tokens [b, t + 1], of which the seed takes the first t.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from jaxmodels.runtime.optim import optimiser, schedule

    model, loss_fn = _seed_package(package, config, recipe)
    tx = optimiser(recipe.optim, schedule(recipe.optim, recipe.steps))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, tokens: Any, key: Any) -> Any:
        batch = [tokens, jnp.ones_like(tokens), tokens]
        value, grads = jax.value_and_grad(loss_fn)(params, model, batch, key)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    tree = _seed_tree(
        "bwetaf", {path: jnp.array(leaf, recipe.dtype) for path, leaf in params.items()}
    )
    carry = [tree, tx.init(tree)]

    def call(index: int) -> float:
        tokens = jnp.asarray(inputs[index % len(inputs)][:, :-1])
        *carry[:], value = step(*carry, tokens, jax.random.key(index))
        return float(value)

    return call


def check_seed(preset: str, folder: Path) -> None:
    """Refuses what `seed_bwetaf` cannot build.

    Raises:
        Problem: (usage) the folder does not hold the package, or the preset is of another model.
    """
    if not preset.startswith("bwetaf:"):
        raise Problem(
            "the seed's package trains bwetaf only",
            where=preset,
            fix="leave --seed-package out, or use --preset bwetaf:53m",
            exit_code=USAGE,
        )
    if not (folder / "BwETAF" / "__init__.py").is_file():
        raise Problem(
            "the seed's package is missing",
            where=str(folder),
            fix="unpack BwETAF 0.5.1 from PyPI, and give the folder that holds BwETAF/",
            exit_code=USAGE,
        )


def _seed_package(folder: Path, config: Any, recipe: Recipe) -> tuple[Any, Any]:
    """The seed's model of these sizes and its loss."""
    import jax.numpy as jnp

    sys.path.insert(0, str(folder))
    # Its import downloads GPT-2's tokeniser, which a train step does not need.
    with mock.patch("tiktoken.get_encoding"):
        seed = importlib.import_module("BwETAF.model.model")
    model = seed.Model(
        num_heads=config.heads,
        attention_dim=config.dim,
        vocab_size=config.vocab,
        num_blocks=config.layers,
        ff_dim=config.hidden,
        dropout_rate=config.dropout,
        max_len=config.context,
        emb_splt=256,
        use_rope=config.positions == "rotate",
        emb_scaling_factor=config.embed_scale,
        res_scale=config.residual_scale,
        dtype=jnp.dtype(recipe.dtype),
    )
    return model, importlib.import_module("BwETAF._utils").loss_fn


def _seed_tree(arch: str, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as the seed's tree: {"params": …}."""
    from bridge.core import table
    from bridge.core.ops import OPS
    from jaxmodels.runtime.paths import nest

    pairs = table.pairs(jaxmodels.arch(arch).UPSTREAM, params)
    flat = {pair.theirs: OPS[pair.op].forward(params[pair.ours]) for pair in pairs}
    return {"params": nest({name.replace(".", "/"): leaf for name, leaf in flat.items()})}
