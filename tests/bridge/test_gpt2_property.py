"""Any GPT-2 in any common form opens with transformers' outputs, or is refused.

With more examples, by hand: GPT2_EXAMPLES=2000 pytest tests/bridge/test_gpt2_property.py
"""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

import bridge
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from tests.bridge.gpt2_ways import EXACT, TANH, Way, configs, expected, make, ways, write

EXAMPLES = int(os.environ.get("GPT2_EXAMPLES", "6"))
torch.set_num_threads(1)
_erf = np.vectorize(math.erf)


def forward(source, tokens):
    """wikigpt in NumPy, in float64, from the opened tensors, so that nothing is compiled.

    That the JAX model computes the same is shown by `test_gpt2_folder.py`, for both GELUs.
    """
    config = source.config
    p = {path: tensor.read().astype(np.float64) for path, tensor in source.tensors.items()}

    def norm(x, at):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * p[f"{at}/scale"] + p.get(f"{at}/bias", 0)

    def linear(x, at):
        return x @ p[f"{at}/kernel"] + p.get(f"{at}/bias", 0)

    def gelu(x):
        if config.gelu == "exact":
            return x * 0.5 * (1 + _erf(x / np.sqrt(2)))
        return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    length = tokens.shape[1]
    x = p["embed/embedding"][tokens] + p["pos/embedding"][:length]
    for i in range(config.layers):
        block = f"blocks/{i}"
        qkv = linear(norm(x, f"{block}/norm1"), f"{block}/attn/qkv")
        q, k, v = (
            part.reshape(*part.shape[:2], config.heads, -1).swapaxes(1, 2)
            for part in np.split(qkv, 3, axis=-1)
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + linear(out.swapaxes(1, 2).reshape(x.shape), f"{block}/attn/proj")
        hidden = gelu(linear(norm(x, f"{block}/norm2"), f"{block}/mlp/up"))
        x = x + linear(hidden, f"{block}/mlp/out")
    return norm(x, "norm") @ p["embed/embedding"].T


def some_tokens(values):
    rng = np.random.default_rng(0)
    return rng.integers(0, values["vocab_size"], (2, min(values["n_positions"], 8)))


def opened(path):
    try:
        return bridge.open_checkpoint(path), None
    except Problem as problem:
        return None, problem


def may_be_refused(values):
    """Whether wikigpt does not compute the model."""
    if values.keys() & {
        "layer_norm_epsilon",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
        "is_causal",
    }:
        return True
    return values["activation_function"] == "relu" or values.get("tie_word_embeddings") is False


def can_be_kept(values, way):
    """Whether the writer of a form would have written this model, whose code computes it."""
    plain = not may_be_refused(values) or "layer_norm_epsilon" in values
    if way.form == "nanogpt":
        exact = values["activation_function"] in EXACT and "layer_norm_epsilon" not in values
        return plain and exact and values["n_inner"] in (None, 4 * values["n_embd"])
    return way.form != "gguf" or (plain and values["activation_function"] in TANH)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(configs(), ways, st.integers(0, 2**30))
@pytest.mark.usefixtures("readers_here")
def test_it_opens_with_transformers_numbers_or_is_refused(values, way, seed):
    if not can_be_kept(values, way):
        way = Way(**{**vars(way), "form": "folder"})
    module, tokens = make(values, way.dtype, seed), some_tokens(values)
    truth = expected(module, tokens)
    with tempfile.TemporaryDirectory() as folder:
        source, problem = opened(write(Path(folder), module, way))
        if problem is not None:
            note(f"{problem.what} {problem.why}")
            assert problem.exit_code in (MISMATCH, CORRUPT)
            assert may_be_refused(values)
        else:
            assert np.abs(forward(source, tokens) - truth).max() < 1e-5
