"""Compares what two models compute: JAX with PyTorch, or one checkpoint with another."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.loading import model_of
from bridge.core import table
from bridge.core.tensors import DTYPES, Tensor
from bridge.core.twins import AnyTwin, twin
from bridge.storage.stacks import stacked_in
from bridge.torch.loading import module_of
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.extras import require

FLOAT32 = DTYPES["F32"]


class Parity(NamedTuple):
    """How far two sides are apart, in float32 on both."""

    random: float
    """Largest absolute difference of outputs on random inputs."""
    text: float | None
    """The same on the given text; None without one."""
    argmax: float | None
    """The share of positions, in all inputs, whose largest output stands at the same place."""
    gradient: float | None
    """Largest difference of a parameter's gradients, as a share of the largest number in them (or
    of a hundredth of the largest in all: some are zero but for rounding, as that of a key's
    bias); None when it was not asked for."""

    def complaints(self, sides: str, atol: float) -> list[str]:
        """What is further apart than `atol`: one sentence each."""
        differences = {
            f"outputs of {sides}": self.random,
            f"outputs of {sides} on the text": self.text,
            f"gradients of {sides}": self.gradient,
        }
        return [
            f"{what} differ by {difference:.3g} > {atol:g}"
            for what, difference in differences.items()
            if difference is not None and not difference <= atol
        ]


def compare_outputs(
    source: Checkpoint,
    reference: Checkpoint | None = None,
    text: str | None = None,
    gradients: bool = False,
) -> Parity:
    """JAX against the PyTorch twin of the same source, or JAX against JAX of the reference.

    Args:
        source: the checkpoint.
        reference: another one; None compares with PyTorch.
        text: compare on it too.
        gradients: compare those of every parameter too (with PyTorch only).

    Raises:
        Problem: (usage) a text, and no tokeniser to read it; gradients that cannot be compared.
    """
    side = twin(source.arch)
    inputs = [side.example(source.config)]
    if text is not None:
        inputs.append(_read(side, source, text))
    model = model_of(source, FLOAT32)
    ours = [side.jax_outputs(model, each) for each in inputs]
    if reference is None:
        module = module_of(source).float()
        theirs = [side.torch_outputs(module, each) for each in inputs]
    else:
        other = model_of(reference, FLOAT32)
        theirs = [side.jax_outputs(other, each) for each in inputs]
    largest = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
    same = [(a.argmax(-1) == b.argmax(-1)).reshape(-1) for a, b in zip(ours, theirs, strict=True)]
    return Parity(
        random=largest[0],
        text=largest[1] if text is not None else None,
        argmax=float(np.concatenate(same).mean()),
        gradient=_gradients(side, source, model, module, inputs[0])
        if gradients and reference is None
        else None,
    )


def check_comparable(source: Checkpoint, text: str | None, gradients: bool) -> None:
    """Checks that `compare_outputs` can do what it will be asked for; raises as it does."""
    require("torch", "comparing with PyTorch")
    side = twin(source.arch)
    if text is not None:
        _read(side, source, text)
    if gradients and side.jax_forward is None:
        raise Problem(f"gradients of {source.arch} are not compared", exit_code=USAGE)


def _read(side: AnyTwin, source: Checkpoint, text: str) -> Any:
    """The text as inputs of the model."""
    if source.tokenizer is None or side.given is None:
        raise Problem(
            "the text cannot be read",
            where=str(source.path),
            why=f"{source.arch} reads no text" if source.tokenizer else "there is no vocabulary",
            fix="leave the text out, or give the vocabulary with --vocab FILE",
            exit_code=USAGE,
        )
    ids = source.tokenizer.encode(text)
    if len(ids) == 0:
        raise Problem("the text is empty", fix="give some", exit_code=USAGE)
    return side.given(source.config, ids)


def _gradients(side: AnyTwin, source: Checkpoint, model: Any, module: Any, inputs: Any) -> float:
    """The largest relative difference of gradients of outputs, weighed at random, summed up."""
    import jax
    import torch

    from jaxmodels.runtime.paths import split, unstack

    package = jaxmodels.arch(source.arch)
    jax_forward, torch_forward = side.jax_forward, side.torch_forward
    assert jax_forward is not None
    assert torch_forward is not None
    graphdef, params, rest = split(model)

    def total(params: Any) -> Any:
        out = jax_forward(graphdef.merge(params, rest), inputs)
        return (out * _weights(out.shape)).sum()

    ours = unstack(jax.jit(jax.grad(total))(params), stacked_in(package))
    module.zero_grad()
    out = torch_forward(module, inputs)
    (out * torch.from_numpy(_weights(tuple(out.shape)))).sum().backward()
    found = []
    for pair in table.pairs(package.WEIGHTS, ours):
        gradient = module.get_parameter(pair.theirs).grad
        if gradient is None and not np.asarray(ours[pair.ours]).any():
            continue  # neither side reads it
        if gradient is None:
            raise Problem(f"{pair.theirs} gets no gradient in PyTorch", exit_code=MISMATCH)
        values = gradient.numpy()
        there = Tensor(pair.theirs, values.shape, values.dtype, partial(_same, values))
        here = np.asarray(ours[pair.ours])
        difference = np.abs(here - pair.load(there, here.shape).read()).max(initial=0.0)
        found.append((float(difference), float(np.abs(here).max(initial=0.0))))
    least = max(size for _, size in found) / 100 or 1.0
    return max(difference / max(size, least) for difference, size in found)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _weights(shape: tuple[int, ...]) -> np.ndarray:
    """The same random numbers on both sides."""
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)
