"""wigip against the seed's own code (tests/golden/wigip), and the dense objective's properties."""

import gzip
import json
import pickle
import time
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange
from flax import nnx
from jax.extend.core import jaxprs_in_params

import jaxmodels
from bridge.core.ops import OPS
from jaxmodels.__main__ import main
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import generate
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.paths import flatten, params_of, pattern, split, stack, unstack
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import init, train_step
from jaxmodels.wigip.dense import attend

wigip = jaxmodels.arch("wigip")

TINY = wigip.PRESETS["tiny"]
DENSE = replace(TINY, objective="dense")


@pytest.fixture(scope="module")
def seed(golden):
    """The golden inputs and outputs, and a model with the seed's weights."""
    io = np.load(golden / "wigip" / "io.npz")
    layers, dim, heads, side, patch, vocab = io["cfg"].tolist()
    config = wigip.Config(vocab, side, patch, dim, layers, heads)
    weights = {}
    with zipfile.ZipFile(golden / "wigip" / "step_7.zip") as archive:
        for name in archive.namelist():
            if name.startswith("params/") and name.endswith(".pkl.gz"):
                tree = pickle.loads(gzip.decompress(archive.read(name)))  # our own golden file
                key = name.removeprefix("params/").removesuffix(".pkl.gz")
                weights |= flatten({key: tree}, ".")
    graphdef, params, rest = split(wigip.Model(config, rngs=nnx.Rngs(0)))
    layered = unstack(params, wigip.SCANNED)
    for path, leaf in layered.items():
        for ours, theirs, op in wigip.UPSTREAM:
            if found := pattern(ours).fullmatch(path):
                array = OPS[op].inverse(np.asarray(weights.pop(theirs.format(**found.groupdict()))))
                assert array.shape == leaf.shape
                layered[path] = jnp.asarray(array)
    assert not weights
    return io, graphdef, stack(layered, wigip.SCANNED), rest


@pytest.mark.slow
def test_logits(seed):
    io, graphdef, params, rest = seed
    logits, _ = graphdef.merge(params, rest)(jnp.asarray(io["ids"]))
    assert np.abs(logits - io["logits"]).max() <= 2e-5


@pytest.mark.slow
def test_loss_and_gradient_norm(seed):
    io, graphdef, params, rest = seed
    tokens = jnp.concatenate([io["ids"], io["target"][:, None]], axis=1)
    loss, grads = jax.value_and_grad(
        lambda p: wigip.loss(graphdef.merge(p, rest), {"tokens": tokens}, None)[0]
    )(params)
    assert abs(loss - io["loss"]) <= 1e-5
    assert float(optax.tree.norm(grads)) == pytest.approx(float(io["gradnorm"]), rel=1e-4)


def loud(config: wigip.Config, seed: int = 0) -> wigip.Model:
    """A model with weights so large that every mistake shows."""
    graphdef, params, rest = split(wigip.Model(config, rngs=nnx.Rngs(seed)))
    rng = np.random.default_rng(seed)
    large = {p: x + 0.2 * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}
    return graphdef.merge(large, rest)


def text(rows: int, length: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, TINY.vocab, (rows, length)))


def test_the_convolution_is_a_convolution():
    """Patches of embedded characters times the kernel, against lax's convolution on the grid."""
    model, tokens = loud(TINY), text(2, 256)
    grid = model.embed.embedding[...][tokens].reshape(2, 16, 16, 16)
    expected = jax.lax.conv_general_dilated(
        grid, model.patch.kernel[...], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ids = tokens.reshape(2, 4, 4, 4, 4).swapaxes(2, 3).reshape(2, 16, 16)
    found = model.convolved(model.embedded(ids))
    np.testing.assert_allclose(found, expected.reshape(2, 16, 64), atol=1e-4)


@pytest.mark.slow
def test_a_dense_character_sees_those_before_it_and_no_later_one():
    """By gradient with respect to one-hot characters, over five patches, the last one cut."""
    graphdef, params, rest = split(loud(DENSE))
    table, length = params["embed/embedding"], 70
    tokens = jnp.arange(length) % TINY.vocab

    @jax.jit
    @jax.jacrev
    def seen(x):  # x: a row of the embedding for each place, so that places are told apart
        held = params | {"embed/embedding": x}
        model = graphdef.merge(held, rest)
        return jnp.square(model.logits(model.dense(jnp.arange(length)[None]))[0]).sum(axis=-1)

    moved = np.abs(seen(table[tokens])).sum(axis=-1)  # [t, place]
    later = np.triu(np.ones((length, length), bool), 1)
    assert (moved[later] == 0).all()
    assert (moved[~later] > 0).all()


def states(dtype=jnp.float32, scale=1.0):
    """Queries, keys and values of 4 states of 11 patches."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(scale * rng.normal(size=(2, 4, 11, 3, 8)), dtype) for _ in "qkv"]


def states_plainly(q, k, v):
    """Attention of states by one softmax over the full patches and each state itself."""
    q, k, v = (rearrange(x.astype(jnp.float32), "b p n h k -> b n p h k") for x in (q, k, v))
    seen = jnp.arange(11)[:, None] > jnp.arange(11)
    full = jnp.einsum("bnphk,bmhk->bhnpm", q, k[:, :, -1])
    own = jnp.einsum("bnphk,bnphk->bhnp", q, k)[..., None]
    scores = jnp.concatenate([jnp.where(seen[:, None], full, -jnp.inf), own], axis=-1)
    weights = jax.nn.softmax(scores * 8**-0.5)
    out = jnp.einsum("bhnpm,bmhk->bnphk", weights[..., :-1], v[:, :, -1])
    out += rearrange(weights[..., -1:], "b h n p 1 -> b n p h 1") * v
    return rearrange(out, "b n p h k -> b p n h k")


def test_attention_of_states_is_one_softmax(monkeypatch):
    monkeypatch.setattr("jaxmodels.layers.blocks.QUERIES", 16)  # rows of 4 patches

    def results(form):
        def loss(*a):
            return jnp.sin(form(*a)).sum()

        return jax.jit(lambda *a: (form(*a), *jax.grad(loss, (0, 1, 2))(*a)))(*states())

    for found, expected in zip(results(attend), results(states_plainly), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_large_score_of_a_state_itself_is_not_rounded_to_16_bits():
    """Scores of about 100, of which bfloat16 has every second half."""
    q, k, v = states(jnp.bfloat16, 6.0)
    k = q + k / 8
    # A power of two in place of 1/√8, which bfloat16 would round: only the shift is tried.
    q = q * 8**0.5 / 2
    plain = states_plainly(*(x.astype(jnp.float32) for x in (q.astype(jnp.bfloat16), k, v)))
    found = jax.jit(attend)(q.astype(jnp.bfloat16), k, v).astype(jnp.float32)
    assert jnp.abs(found - plain).mean() < 0.02


@pytest.mark.slow
def test_a_full_patch_of_the_dense_objective_is_the_patch_of_the_seed():
    """One window of one patch: there the two objectives read the same."""
    config = replace(TINY, side=4)
    one, other = loud(config), loud(replace(config, objective="dense"))
    np.testing.assert_allclose(one(text(3, 16))[0], other(text(3, 16))[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 15, 16, 17, 48, 64])
def test_a_prompt_is_read_as_it_would_be_drawn(length):
    model, tokens = loud(DENSE), text(2, 80)
    full = model.logits(model.dense(tokens))
    logits, cache = model.prefill(tokens[:, :64], jnp.asarray(length), 100)
    np.testing.assert_allclose(logits, full[:, length - 1], atol=2e-5)
    np.testing.assert_allclose(model(tokens[:, :length])[0], full[:, length - 1], atol=2e-5)
    after, cache = model(tokens[:, length : length + 16], cache)
    np.testing.assert_allclose(after, full[:, length : length + 16], atol=2e-5)
    assert int(cache.length) == length + 16


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 300])
def test_next_char_draws_from_its_window_read_anew(length):
    """Characters of id 0 stand before a short prompt; only the end of a long one is read."""
    model, prompt = loud(TINY), np.asarray(text(2, length), np.int32)
    window = np.concatenate([np.zeros((2, 256), np.int32), prompt], axis=1)[:, -256:]
    expected = []
    for _ in range(6):
        expected.append(np.asarray(model(jnp.asarray(window))[0].argmax(-1)))
        window = np.concatenate([window[:, 1:], expected[-1][:, None]], axis=1)
    drawn = np.concatenate(list(generate(model, prompt, 6, Sampling(None), chunk=4)), axis=1)
    np.testing.assert_array_equal(drawn, np.stack(expected, axis=1))
    assert "253 of id 0" in model.about_prompt(3)
    assert not model.about_prompt(256)


def test_other_lengths_are_refused():
    for config, lengths in ((TINY, (1, 255, 257)), (DENSE, (257,))):
        for length in lengths:
            with pytest.raises(Problem, match=f"{length} tokens") as caught:
                wigip.Model(config, rngs=nnx.Rngs(0))(text(1, length))
            assert caught.value.exit_code == USAGE


def test_documents_cannot_be_kept_apart():
    batch = {"tokens": text(1, 257), "segments": text(1, 257)}
    with pytest.raises(Problem, match="documents apart"):
        wigip.loss(loud(TINY), batch, None)


@pytest.mark.parametrize("change", [{"side": 18}, {"heads": 3}, {"patch": 0}, {"layers": 0}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(Problem) as caught:
        replace(TINY, **change)
    assert caught.value.exit_code == USAGE


def test_every_block_is_drawn_anew_and_as_flax_draws_it():
    params = params_of(wigip.Model(replace(TINY, layers=3), rngs=nnx.Rngs(0)))
    kernel = np.asarray(params["blocks/attn/q/kernel"])
    assert kernel.shape == (3, 64, 2, 32)
    assert len({float(x) for x in kernel.sum(axis=(1, 2, 3))}) == 3
    assert kernel.std() == pytest.approx(64**-0.5, rel=0.05)
    assert params["blocks/mlp/out/kernel"].std() == pytest.approx(256**-0.5, rel=0.05)
    assert params["pos/embedding"].std() == pytest.approx(0.02, rel=0.1)


def equations(jaxpr) -> int:
    inner = (inner for e in jaxpr.eqns for inner in jaxprs_in_params(e.params))
    return len(jaxpr.eqns) + sum(map(equations, inner))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["next_char", "dense"])
@pytest.mark.parametrize("policy", ["none", "full", "dots"])
def test_the_program_does_not_grow_with_depth(objective, policy):
    recipe = replace(wigip.RECIPES["tiny"], remat=policy)
    rate = schedule(recipe.optim, recipe.steps)
    tx = optimiser(recipe.optim, rate)
    counts = []
    for layers in (2, 24):
        config = replace(TINY, objective=objective, layers=layers)
        graphdef, _, state = init(wigip, config, recipe, tx, make_mesh())
        step = train_step(wigip, graphdef, tx, rate, recipe, state)
        batch = {"tokens": jax.ShapeDtypeStruct((2, 257), jnp.int32)}
        traced = step.trace(state, batch)
        counts.append((equations(traced.jaxpr.jaxpr), len(jax.tree.leaves(state))))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_the_largest_step_is_traced_and_lowered_in_five_seconds():
    recipe = wigip.RECIPES["1.7b"]
    rate = schedule(recipe.optim, recipe.steps)
    tx = optimiser(recipe.optim, rate)
    began = time.process_time()  # the processor's time: other processes do not count
    graphdef, _, state = init(wigip, wigip.PRESETS["1.7b"], recipe, tx, make_mesh())
    step = train_step(wigip, graphdef, tx, rate, recipe, state)
    batch = {"tokens": jax.ShapeDtypeStruct((recipe.batch * recipe.accum, 32_401), jnp.int32)}
    step.trace(state, batch).lower()
    assert time.process_time() - began < 5


@pytest.mark.slow
def test_a_run_is_measured_on_what_it_predicts(tmp_path, capsys):
    """One target for each window; and what is generated says how a short prompt was read."""
    run = tmp_path / "run"
    words = ["--steps", "2", "--eval-every", "2", "--save-every", "2", "--sample-every", "0"]
    assert main(["train", "wigip:tiny", "--out", str(run), *words]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 60 < report["tokens"] < 120  # 23,000 characters in windows of 256
    assert report["bits_per_character"] == pytest.approx(report["loss"] / np.log(2))
    assert main(["generate", str(run), "--prompt", "The", "--max-new-tokens", "5"]) == 0
    out = capsys.readouterr()
    assert len(out.out.removesuffix("\n")) == 8
    assert "253 of id 0 stand before the prompt" in out.err
