"""The PyTorch side of bitgen_stage1: numbers, gradients, a folder that stands alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
import jaxmodels
from bridge.core import table
from bridge.core.ops import OPS
from bridge.core.tensors import Tensor
from bridge.core.twins import twin
from bridge.torch.loading import state_dict as torch_state
from jaxmodels.runtime.paths import split
from tests.bridge.helpers import random_params, write_run
from tests.bridge.twins import alone
from tests.contract import DEAD, small, smallest
from tests.jaxmodels.stage1 import CONFIG, images, load, parts

torch.set_num_threads(1)
PACKAGE = jaxmodels.arch("bitgen_stage1")


def built(config, held):
    """The twin with these arrays (our path → array)."""
    arrays = {path: np.asarray(array) for path, array in held.items()}
    tensors = {p: Tensor(p, x.shape, x.dtype, lambda x=x: x) for p, x in arrays.items()}
    module = twin("bitgen_stage1").build(config)
    module.load_state_dict(torch_state("bitgen_stage1", config, tensors), strict=True)
    return module


@pytest.mark.slow
def test_golden_outputs():
    """In float64 within 1e-5, whole and text only, with noise and without."""
    _, params, rest = parts()
    module, golden = built(CONFIG, params | rest).double().eval(), load("evaluation")
    seen = torch.from_numpy(images("evaluation_images")).double().permute(0, 3, 1, 2)
    for case in ("B_resize_det", "B_resize_noise", "C_textonly_det"):
        tokens = torch.from_numpy(golden[f"{case}/input_ids"])
        noise = golden.get(f"{case}/mem_eps")
        with torch.no_grad():
            out = module(
                tokens,
                pixel_values=None if case.startswith("C") else seen,
                targets=tokens,
                noise=None if noise is None else torch.from_numpy(noise),
            )
        for name in ("embeddings", "text_features", "image_features", "decoder_logits"):
            if f"{case}/{name}" in golden:
                difference = out[name].numpy() - golden[f"{case}/{name}"]
                assert np.abs(difference).max() <= 1e-5, (case, name)
        assert (out.image_features is None) == case.startswith("C")


@pytest.mark.slow
def test_outputs_and_gradients_of_training():
    """In training the decoder is not quantised: everything that is asked has the same gradient."""
    config = smallest("bitgen_stage1")
    graphdef, _, rest = split(small("bitgen_stage1"))
    params = random_params("bitgen_stage1:smallest", 3)
    module = built(config, params | rest).train()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (3, 9))
    seen = rng.random((3, 30, 42, 3), np.float32)
    noise = rng.standard_normal((config.slots, config.dim)).astype(np.float32)
    ids, pixels = torch.from_numpy(tokens), torch.from_numpy(seen).permute(0, 3, 1, 2)
    out = module(ids, pixels, ids, torch.from_numpy(noise))
    names = ("embeddings", "text_features", "image_features", "decoder_logits")
    sum(out[name].square().mean() for name in names).backward()

    @jax.jit
    @jax.grad
    def gradient(params):
        out = graphdef.merge(params, rest)(
            *map(jnp.asarray, (tokens, seen, tokens, noise)), nnx.Rngs(dropout=0)
        )
        return sum(jnp.square(getattr(out, name)).mean() for name in names)

    grads = gradient(params)
    theirs = dict(module.named_parameters())
    silent = {path for path, grad in grads.items() if not jnp.abs(grad).max() > 0}
    assert silent == DEAD["bitgen_stage1"] | {"fusion/temperature"}
    for pair in table.pairs(PACKAGE.WEIGHTS, grads):
        grad = theirs[pair.theirs].grad
        if pair.ours in silent:
            assert grad is None, pair.theirs
            continue
        mine = OPS[pair.op].inverse(grad.numpy()).reshape(grads[pair.ours].shape)
        most = max(1.0, float(np.abs(mine).max()))
        assert np.abs(mine - grads[pair.ours]).max() / most <= 1e-5, pair.ours


@pytest.mark.slow
def test_a_directory_stands_alone(tmp_path):
    """transformers opens it without any of our packages, and gives the same."""
    write_run(tmp_path / "run", {1: None}, spec="bitgen_stage1:smallest")
    bridge.convert(tmp_path / "run", tmp_path / "model", verify="logits")
    found = alone(
        """
from transformers import AutoModel
model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()
ids = torch.arange(10)[None]
with torch.no_grad():
    out = model(ids, pixel_values=torch.full((1, 3, 40, 50), 0.25), targets=ids)
result = [out.embeddings.tolist(), out.image_features.tolist(), model.fusion.queue_ptr.tolist(),
          list(out.decoder_logits.shape)]
""",
        tmp_path / "model",
    )
    tokens = jnp.arange(10)[None]
    ours = bridge.load(tmp_path / "model")(tokens, jnp.full((1, 40, 50, 3), 0.25), targets=tokens)
    assert np.abs(np.asarray(found[0]) - ours.embeddings).max() <= 1e-4
    assert np.abs(np.asarray(found[1]) - ours.image_features).max() <= 1e-4
    assert found[2:] == [[3], [1, 10, 64]]


@pytest.mark.slow
def test_a_text_that_is_too_long_is_refused():
    config = replace(PACKAGE.PRESETS["tiny"], context=4)
    module = twin("bitgen_stage1").build(config)
    with pytest.raises(ValueError, match="longer than the context of 4"):
        module(torch.zeros(1, 5, dtype=torch.long))
