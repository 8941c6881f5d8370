"""wikigpt against nanoGPT's own code (tests/golden/nanogpt_*) and its formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxmodels
from bridge.core import table
from bridge.core.ops import OPS
from jaxmodels import sizes, wikigpt
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.losses import cross_entropy
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import generate
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import params_of, split

TINY = wikigpt.PRESETS["tiny"]


@pytest.fixture(scope="module", params=["nanogpt_bias", "nanogpt_nobias"])
def seed(golden, request):
    """The golden inputs and outputs, and a model with nanoGPT's weights."""
    import torch

    folder = golden / request.param
    saved = torch.load(folder / "ckpt.pt", weights_only=True)
    weights = {n.removeprefix("_orig_mod."): t.numpy() for n, t in saved["model"].items()}
    args = saved["model_args"]
    config = wikigpt.Config(
        vocab=args["vocab_size"],
        tokens=args["vocab_size"],
        dim=args["n_embd"],
        layers=args["n_layer"],
        heads=args["n_head"],
        hidden=4 * args["n_embd"],
        context=args["block_size"],
        dropout=0.0,
        bias=args["bias"],
        gelu="exact",
    )
    graphdef, fresh, rest = split(wikigpt.Model(config, rngs=nnx.Rngs(0)))
    pairs = table.pairs(wikigpt.UPSTREAM, fresh)
    assert {pair.theirs for pair in pairs} == weights.keys() - {"lm_head.weight"}
    params = {p.ours: jnp.asarray(OPS[p.op].inverse(weights[p.theirs])) for p in pairs}
    for name, path in wikigpt.TIED:
        np.testing.assert_array_equal(weights[name], params[path])
    io = {name: jnp.asarray(value) for name, value in np.load(folder / "io.npz").items()}
    return io, graphdef, params, rest


@pytest.mark.slow
def test_logits(seed):
    io, graphdef, params, rest = seed
    logits, _ = graphdef.merge(params, rest)(io["ids"])
    assert np.abs(logits - io["logits"]).max() <= 2e-5


@pytest.mark.slow
def test_cached_logits(seed):
    io, graphdef, params, rest = seed
    model, ids = graphdef.merge(params, rest), io["ids"]
    cache, pieces = model.init_cache(2), []
    for t in range(ids.shape[1]):
        logits, cache = model(ids[:, t : t + 1], cache)
        pieces.append(logits)
    assert np.abs(jnp.concatenate(pieces, axis=1) - io["logits"]).max() <= 2e-5


@pytest.mark.slow
def test_loss_and_gradient_norm(seed):
    io, graphdef, params, rest = seed

    def loss_of(params):  # the golden targets do not follow from the ids, so not `wikigpt.loss`
        return cross_entropy(graphdef.merge(params, rest)(io["ids"])[0], io["target"])

    loss, grads = jax.value_and_grad(loss_of)(params)
    assert abs(loss - io["loss"]) <= 1e-5
    assert float(optax.tree.norm(grads)) == pytest.approx(float(io["gradnorm"]), rel=1e-4)


def test_sizes_tell_biases_and_gpt2s_vocabulary():
    for vocab, tokens in ((50_304, 50_257), (50_257, 50_257), (50_256, 50_256), (97, 97)):
        config = replace(TINY, vocab=vocab, tokens=1, bias=vocab == 97)
        leaves = sizes.shapes("wikigpt", config)
        known, assumed = wikigpt.sizes({path: leaf.shape for path, leaf in leaves.items()})
        assert (known["vocab"], assumed["tokens"], known["bias"]) == (vocab, tokens, vocab == 97)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["embedding", "weights", "residual"])
def test_dropout(place, monkeypatch):
    """Off without rngs; with them, each of the three places alone changes the logits."""
    from jaxmodels.layers import attention
    from jaxmodels.wikigpt import model as module

    model = wikigpt.Model(replace(TINY, dropout=0.5), rngs=nnx.Rngs(0))
    tokens = jnp.ones((1, 4), jnp.int32)
    plain = model(tokens)[0]
    kept = {"embedding": lambda n: n == 0, "residual": lambda n: n > 0, "weights": lambda n: False}
    drop, calls = module._drop, iter(range(100))
    monkeypatch.setattr(
        module,
        "_drop",
        lambda x, cfg, rngs: drop(x, cfg, rngs if kept[place](next(calls)) else None),
    )
    if place != "weights":
        monkeypatch.setattr(attention, "dropout", lambda x, rate, key: x)
    noisy = model(tokens, rngs=nnx.Rngs(dropout=0))[0]
    assert (model(tokens)[0] == plain).all()
    assert not jnp.allclose(plain, noisy)


@pytest.mark.slow
def test_initialisation_is_nanogpts():
    params = params_of(jaxmodels.create("wikigpt:base"))
    small = 0.02 / np.sqrt(2 * 6)
    for path, std in (
        ("embed/embedding", 0.02),
        ("pos/embedding", 0.02),
        ("blocks/3/attn/qkv/kernel", 0.02),
        ("blocks/3/attn/proj/kernel", small),
        ("blocks/3/mlp/up/kernel", 0.02),
        ("blocks/3/mlp/out/kernel", small),
    ):
        assert float(params[path].std()) == pytest.approx(std, rel=0.02), path
    assert not any(x.any() for path, x in params.items() if path.endswith("/bias"))


@pytest.mark.slow
def test_decay_spares_biases_and_norms():
    """With gradients of zero, AdamW's step is its weight decay alone."""
    params = {path: jnp.ones(x.shape) for path, x in params_of(_random(TINY)).items()}
    tx = optimiser(wikigpt.RECIPES["base"].optim, 1.0)
    zeros = {path: jnp.zeros_like(x) for path, x in params.items()}
    updates, _ = tx.update(zeros, tx.init(params), params)
    for path, update in updates.items():
        decayed = params[path].ndim == 2
        np.testing.assert_allclose(update, -0.1 if decayed else 0.0, rtol=1e-6, err_msg=path)


def _random(config):
    """Large weights: fresh ones hardly look back."""
    graphdef, params, rest = split(wikigpt.Model(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    moved = {p: x + 0.3 * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}
    return graphdef.merge(moved, rest)


@pytest.mark.slow
def test_padding_of_the_vocabulary_is_never_drawn():
    prompt = np.zeros((8, 1), np.int32)
    drawn = [
        np.concatenate(list(generate(_random(config), prompt, 24, Sampling(5.0))), axis=1)
        for config in (TINY, replace(TINY, tokens=40))
    ]
    assert drawn[0].max() >= 40  # the weights are the same: only `tokens` forbids them
    assert drawn[1].max() < 40


@pytest.mark.slow
def test_generation_ends_when_every_row_has_drawn_the_end():
    model, prompt = _random(TINY), np.asarray([[1], [2], [3]], np.int32)

    def drawn(**settings):
        return list(generate(model, prompt, 200, Sampling(3.0), chunk=4, **settings))

    whole = np.concatenate(drawn(), axis=1)
    end = int(np.bincount(whole.ravel()).argmax())
    last = max(list(row).index(end) for row in whole)
    assert last < 196
    pieces = drawn(end=end)
    assert sum(piece.shape[1] for piece in pieces[:-1]) <= last < whole.shape[1]
    ended = np.concatenate(pieces, axis=1)
    assert ended.shape[1] > last
    np.testing.assert_array_equal(ended, whole[:, : ended.shape[1]])


def test_text_beyond_the_context_is_refused():
    model = jaxmodels.create("wikigpt:tiny")
    with pytest.raises(Problem, match="33 tokens do not fit a context of 32") as caught:
        model(jnp.zeros((1, 33), jnp.int32))
    assert caught.value.exit_code == USAGE


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"heads": 3}, {"tokens": 65}, {"tokens": 0}, {"context": 1}, {"dropout": 1.0}],
    ids=str,
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(Problem) as caught:
        replace(TINY, **change)
    assert caught.value.exit_code == USAGE
