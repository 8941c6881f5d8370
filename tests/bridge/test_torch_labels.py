"""The loss that the bitgens' PyTorch twins return for labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from bridge.core.tensors import Tensor
from bridge.core.twins import twin
from bridge.torch.loading import state_dict as torch_state
from jaxmodels import bitgen
from jaxmodels.bitgen.objectives import SMOOTHING
from jaxmodels.runtime.paths import split
from tests.contract import PAIRS, exact, small, smallest

torch.set_num_threads(1)


def example(arch):
    """ids and labels int64 [3, 7], pixels float32 [3, 3, y, x]."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, smallest(arch).vocab, (3, 7)))
    labels = ids.clone()
    labels[0, :4], labels[2, -2:] = -100, -100
    side = smallest(arch).image_size
    return ids, labels, torch.from_numpy(rng.random((3, 3, side, side), np.float32))


@pytest.fixture(params=sorted(PAIRS))
def arch(request):
    return request.param


@pytest.fixture
def module(arch):
    torch.manual_seed(0)
    return twin(arch).build(smallest(arch)).eval()


def test_it_is_the_mean_over_the_labels_that_count(arch, module):
    """Of the tokens themselves: the decoder shifts, where it was trained so."""
    ids, labels, pixels = example(arch)
    with torch.no_grad():
        out = module(ids, images=pixels, labels=labels)
        logits = module(ids, pixels, targets=ids).decoder_logits.double().numpy()
        assert module(ids, pixels).loss is None
        assert module(ids, pixels, labels=labels).to_tuple()[0] == out.loss
    every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = (labels != -100).numpy()
    chosen = np.take_along_axis(every, ids.numpy()[..., None], -1)[..., 0]
    assert out.loss.item() == pytest.approx(-chosen[counted].mean(), abs=1e-5)


def test_it_can_be_trained_with(arch, module):
    ids, labels, pixels = example(arch)
    module.train()(ids, pixels, labels=labels).loss.backward()
    assert module.embed.weight.grad.abs().max() > 0
    if arch == "bitgen":  # the first token is predicted too, from the start that was learned
        assert module.decoder.start.grad.abs().max() > 0


def test_labels_that_do_not_fit_are_refused(arch, module):
    ids, labels, pixels = example(arch)
    with pytest.raises(ValueError, match=r"\[3, 6\] do not go with \[3, 7\]"):
        module(ids, pixels, labels=labels[:, 1:])
    with pytest.raises(TypeError, match="label_smoothing"):
        module(ids, pixels, labels=labels, label_smoothing=0.1)
    if arch == "bitgen":
        mask = torch.ones_like(ids)
        mask[1, 0] = 0
        with pytest.raises(ValueError, match="padded on the right"):
            module(ids, pixels, attention_mask=mask, labels=labels)


@pytest.mark.slow
def test_it_is_the_loss_that_bitgen_learns_answers_by():
    """In float64: that of `scored` tokens, in sight of the image; no other token is learned."""
    ids, labels, pixels = example("bitgen")
    model = small("bitgen")
    _, params, rest = split(model)
    arrays = {path: np.asarray(x) for path, x in (params | rest).items()}
    tensors = {p: Tensor(p, x.shape, x.dtype, lambda x=x: x) for p, x in arrays.items()}
    module = twin("bitgen").build(smallest("bitgen")).double().eval()
    module.load_state_dict(torch_state("bitgen", smallest("bitgen"), tensors), strict=True)
    images = (pixels.permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()
    seen = torch.from_numpy(images.astype(np.float32) / 255).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = module(ids, seen, labels=labels)
    batch = {"tokens": ids.numpy(), "scored": (labels != -100).int().numpy(), "images": images}
    batch |= {"mask": np.ones_like(ids), "image_id": np.arange(3)}
    with jax.enable_x64(True):
        batch = jax.tree.map(jnp.asarray, batch)
        loss, aux = nnx.jit(bitgen.loss)(exact(model), batch, None)
        assert int(bitgen.counted(batch)) == (labels != -100).sum()
    assert "ids" not in aux  # nothing is queued
    assert np.log(float(aux["metrics"]["perplexity"])) == pytest.approx(
        theirs.loss.item(), abs=1e-5
    )
    logs = torch.log_softmax(theirs.decoder_logits, -1)[labels != -100]
    smooth = (1 - SMOOTHING) * theirs.loss - SMOOTHING * logs.mean()
    assert float(loss) == pytest.approx(smooth.item(), abs=1e-5)
