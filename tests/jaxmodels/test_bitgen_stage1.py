"""bitgen_stage1 against what the seed's own code computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels
from bridge.core.table import pairs
from jaxmodels.bitgen_stage1.bitlinear import BitLinear, eight_bits, ternary
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import State, init, train_step
from tests.contract import small, smallest
from tests.jaxmodels.stage1 import CONFIG, images, load, parts

PACKAGE = jaxmodels.arch("bitgen_stage1")


@pytest.fixture(scope="module")
def golden():
    return load("evaluation")


def close(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("case", ["small", "zeros"])
def test_the_ternary_layer(golden, case):
    """The seed's unit cases, in float64: ties, a matrix of zeros, an input of zeros."""
    said = {
        key.split("/")[-1]: value
        for key, value in golden.items()
        if key.startswith(f"bitlinear/{case}")
    }
    with jax.enable_x64(True):
        x, weight = jnp.asarray(said["x"]), jnp.asarray(said["weight"])
        values, scale = ternary(weight)
        np.testing.assert_array_equal(values, said["q_weight"])
        close(scale, said["w_scale"], 1e-12)
        values, scale = eight_bits(x)
        np.testing.assert_array_equal(values, said["q_x"])
        close(scale, said["x_scale"], 1e-12)
        layer = BitLinear(*weight.T.shape, rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = weight.T, jnp.asarray(said["bias"])
        close(layer(x, quantised=True), said["y_eval"], 1e-12)
        close(layer(x, quantised=False), said["y_train"], 1e-12)


CASES = ("B_resize_det", "B_resize_noise", "C_textonly_det")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_evaluation_in_float64(golden, case):
    """Embeddings, features, logits and what is read in the memory, within 1e-5."""
    want = {k.removeprefix(case + "/"): v for k, v in golden.items() if k.startswith(case)}
    seen = None if case.startswith("C") else images("evaluation_images")
    with jax.enable_x64(True):
        graphdef, params, rest = parts(np.float64)
        tokens = jnp.asarray(want["input_ids"], jnp.int32)

        @jax.jit
        def run(params, rest, seen, noise):
            model = graphdef.merge(params, rest)
            return model(tokens, images=seen, targets=tokens, noise=noise)

        seen = None if seen is None else jnp.asarray(seen, jnp.float64)
        out = run(params, rest, seen, want.get("mem_eps"))
    assert out.embeddings.dtype == out.decoder_logits.dtype == np.float64
    close(out.embeddings, want["embeddings"])
    close(out.decoder_logits, want["decoder_logits"])
    np.testing.assert_array_equal(out.recall.slots, want["mem_top_k_indices"])
    close(out.recall.scores, want["mem_top_k_scores"])
    close(out.recall.weights, want["mem_weights"])
    hit = np.isin(np.arange(CONFIG.slots), out.recall.slots)
    np.testing.assert_array_equal(want["mem_read_count_before"] + hit, want["mem_read_count_after"])
    if seen is None:
        assert out.image_features is None
    else:
        close(out.text_features, want["text_features"])
        close(out.image_features, want["image_features"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:2])
def test_losses_and_metrics_of_evaluation(golden, case):
    want = {k.split("/")[-1]: v for k, v in golden.items() if k.startswith(f"{case}/loss/")}
    batch = {"tokens": golden[f"{case}/input_ids"].astype(np.int32)}
    with jax.enable_x64(True):
        graphdef, params, rest = parts(np.float64)
        batch["images"] = jnp.asarray(images("evaluation_images"), jnp.float64)
        if f"{case}/mem_eps" in golden:
            batch["noise"] = jnp.asarray(golden[f"{case}/mem_eps"])
        total, aux = jax.jit(lambda p, r, batch: PACKAGE.loss(graphdef.merge(p, r), batch, None))(
            params, rest, batch
        )
    close(total, want.pop("total_loss"))
    want.pop("total_tensor")
    assert set(want) | {"memory_utilization", "memory_quality", "temperature"} == set(
        aux["metrics"]
    )
    for name, value in want.items():
        # Metrics are float32; a perplexity of a hundred has five digits behind the point.
        np.testing.assert_allclose(aux["metrics"][name], value, atol=1e-5, rtol=1e-6, err_msg=name)
    assert aux.keys() == {"metrics"}  # evaluation stores nothing


@pytest.mark.slow
def test_training_as_the_seed_trains():
    """Four micro-batches in two optimiser steps, from losses to parameters.

    Each micro-batch is taken apart (losses, what is stored), and all go through the one train
    step of all models.
    """
    golden, queues = load("training"), load("training_queues")
    names = [str(name) for name in golden["names"]]
    paths = {pair.ours: pair.theirs for pair in pairs(PACKAGE.UPSTREAM, parts()[1])}
    step, graphdef, state = trainer()
    gradient = jax.jit(
        jax.value_and_grad(
            lambda p, r, batch: PACKAGE.loss(graphdef.merge(p, r), batch, nnx.Rngs(dropout=0)),
            has_aux=True,
        )
    )
    for k in range(2):
        batches = [training_batch(golden, i) for i in (2 * k, 2 * k + 1)]
        # The step gives its input away.
        model = graphdef.merge(*jax.tree.map(jnp.copy, (state.params, state.model_state)))
        for i, batch in enumerate(batches, start=2 * k):
            _, params, rest = split(model)
            (total, aux), grads = gradient(params, rest, batch)
            want = dict(zip(golden["loss_names"], golden["losses"][i], strict=True))
            close(total, want.pop("total_loss"))
            for name, value in want.items():
                found = aux["metrics"][name]
                np.testing.assert_allclose(found, value, atol=1e-5, rtol=1e-6, err_msg=name)
            if i == 0:
                norms = dict(zip(names, golden["grad_mb0_norm"], strict=True))
                for path, grad in grads.items():
                    # Of half the loss, as two are added up; −1 where there is none at all.
                    norm = 2 * max(norms[paths[path]], 0)
                    assert jnp.linalg.norm(grad) == pytest.approx(norm, rel=1e-4, abs=1e-5), path
            np.testing.assert_array_equal(aux["written"].slots, golden[f"mb{i}/write_slots"])
            PACKAGE.commit(model, aux)
            close(model.memory.mean[...], golden[f"mb{i}/memory_mean_after_write"])
            for count in ("read_count", "write_count"):
                found = getattr(model.memory, count)[...]
                np.testing.assert_array_equal(found, golden[f"mb{i}/memory_{count}"])
            assert int(model.fusion.queue_ptr[...]) == golden[f"mb{i}/queue_ptr"]
            for kind in ("image", "text"):
                queue = np.asarray(getattr(model.fusion, f"{kind}_queue")[...])
                both = np.concatenate([queue[:, -12:], queue[:, :28]], axis=1)
                close(both, queues[f"mb{i}/{kind}_queue_tail_head"])
        joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        state, told = step(state, joined)
        metrics = told.read()
        assert metrics["loss"] == pytest.approx(
            golden["losses"][
                2 * k : 2 * k + 2, list(golden["loss_names"]).index("total_loss")
            ].mean(),
            abs=1e-5,
        )
        assert metrics["lr"] == pytest.approx(float(golden[f"step{k}/lr_used"]))
        norm = float(golden[f"step{k}/grad_norm_before_clip"])
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        for path, array in split(model)[2].items():
            close(state.model_state[path], array)  # the step stored what we did
        norms = dict(zip(names, golden[f"step{k}/param_norm"], strict=True))
        for path, array in state.params.items():
            if not np.isnan(norm := norms[paths[path]]):
                assert float(jnp.linalg.norm(array)) == pytest.approx(norm, abs=1e-4), path


def training_batch(golden, i: int) -> dict[str, np.ndarray]:
    """One golden micro-batch."""
    return {
        "tokens": golden[f"mb{i}/input_ids"].astype(np.int32),
        "images": images(f"training_images_{2 * i}", f"training_images_{2 * i + 1}"),
        "noise": golden[f"mb{i}/mem_eps"],
    }


def trainer():
    """The train step of the golden run, the skeleton, and the golden weights as a state."""
    optim = replace(PACKAGE.RECIPES["card"].optim, warmup=2.0)
    recipe = Recipe(batch=3, accum=2, slices=1, steps=20, optim=optim)
    rate = schedule(optim, recipe.steps)
    tx = optimiser(optim, rate)
    graphdef, params, rest = parts()
    abstract = init(PACKAGE, CONFIG, recipe, tx, make_mesh())[2]
    key = jax.random.key_data(jax.random.key(0))
    state = State(params, rest, tx.init(params), jnp.zeros((), jnp.int32), key)
    state = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), state, abstract)
    # Its arrays are given away, and are those of numpy.
    state = jax.tree.map(jnp.copy, state)
    return train_step(PACKAGE, graphdef, tx, rate, recipe, abstract), graphdef, state


TINY = smallest("bitgen_stage1")


@nnx.jit
def losses(model, batch, rngs):
    return PACKAGE.loss(model, batch, rngs)


def tiny_batch(rows: int, **changes) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    batch = {
        "tokens": rng.integers(0, TINY.vocab, (rows, 7)).astype(np.int32),
        "images": rng.integers(0, 256, (rows, 20, 33, 3)).astype(np.uint8),
    }
    return {k: jnp.asarray(v) for k, v in (batch | changes).items() if v is not None}


@pytest.mark.slow
def test_what_it_cannot_read():
    model = small("bitgen_stage1")
    tokens, seen = jnp.zeros((1, 33), jnp.int32), jnp.zeros((1, 9, 9, 3))
    for call, said in (
        (lambda: model(None, images=seen), "no image without a text"),
        (lambda: model(tokens), "33 tokens is longer than bitgen_stage1's context of 32"),
        (lambda: model(tokens[:, :3], targets=tokens), "longer than"),
        (lambda: PACKAGE.loss(model, tiny_batch(65), nnx.Rngs(dropout=0)), "queue of 64"),
        (lambda: replace(TINY, heads=5), "not a multiple of 5 heads"),
        (lambda: replace(TINY, image_size=57), "not a multiple of the tower's patch"),
        (lambda: replace(TINY, dinov2=replace(TINY.dinov2, registers=4)), "without registers"),
    ):
        with pytest.raises(Problem, match=said) as caught:
            call()
        assert caught.value.exit_code == USAGE
    images, texts = (nnx.jit(f) for f in (type(model).image_features, type(model).text_features))
    assert images(model, seen).shape == texts(model, tokens[:, :1]).shape == (1, 32)


@pytest.mark.slow
def test_a_batch_of_one_and_a_text_without_images():
    """One row has no negative but itself; without images there is nothing to contrast."""
    model = nnx.clone(small("bitgen_stage1"))
    total, aux = losses(model, tiny_batch(1), None)
    told = aux["metrics"]
    assert jnp.isfinite(total)
    assert told["acc_t2i"] == 1
    assert told["itm_acc"] == 0.5
    total, aux = losses(model, tiny_batch(2, images=None), nnx.Rngs(dropout=0))
    told = aux["metrics"]
    assert "contrastive_loss" not in told
    close(total, 0.5 * told["text_loss"] + 0.1 * told["memory_kl_loss"], 1e-6)
    before = model.memory.mean[...]
    PACKAGE.commit(model, aux)
    assert (model.memory.mean[...] != before).any()
    assert model.memory.write_count[...].tolist() == [1] * TINY.slots
    assert model.fusion.queue_ptr[...] == 0


@pytest.mark.slow
def test_dropout_and_noise_need_keys():
    """The same key gives the same training loss, another one another; none is deterministic."""
    model = PACKAGE.Model(replace(TINY, dropout=0.1), rngs=nnx.Rngs(0))
    batch = tiny_batch(3)

    def total(key: int | None) -> float:
        rngs = None if key is None else nnx.Rngs(dropout=key)
        return float(losses(model, batch, rngs)[0])

    assert total(1) == total(1) != total(2)
    assert total(None) == total(None) != total(1)


@pytest.mark.slow
def test_the_rate_stays_at_a_tenth_of_its_peak():
    rate = schedule(PACKAGE.RECIPES["card"].optim, 21_850)
    assert float(rate(0)) == 0
    assert float(rate(1000)) == pytest.approx(2e-4)
    flat = 1000 + 0.8 * 20_850  # from 79.5% of the way after the warm-up on
    assert float(rate(flat)) == float(rate(21_850)) == pytest.approx(2e-5)
    assert float(rate(1000 + 0.79 * 20_850)) > 2e-5


@pytest.mark.slow
def test_logits_in_parts_change_nothing(monkeypatch):
    """21 positions in three parts: loss, metrics and gradients."""
    from jaxmodels.layers import losses

    graphdef, params, rest = split(small("bitgen_stage1"))
    batch = tiny_batch(3)

    def run() -> tuple:
        def loss(p):
            return PACKAGE.loss(graphdef.merge(p, rest), batch, nnx.Rngs(dropout=0))

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (whole, told), grads = run()
    monkeypatch.setattr(losses, "LOGITS_BYTES", 4 * TINY.vocab * 9)
    (parted, told_again), grads_again = run()
    assert parted == pytest.approx(float(whole), abs=1e-6)
    for name, value in told["metrics"].items():
        assert told_again["metrics"][name] == pytest.approx(float(value), rel=1e-5), name
    for path, grad in grads.items():
        most = max(1.0, float(jnp.abs(grad).max()))
        close(grads_again[path] / most, grad / most, 1e-6)
