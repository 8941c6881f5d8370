"""The bitgen model: features, captions, memory, and errors."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxmodels import bitgen
from jaxmodels.bitgen import bitlinear, encoders, larimar, objectives, remember
from jaxmodels.bitgen.memory import Written
from jaxmodels.errors import Problem
from jaxmodels.runtime.paths import params_of, split
from tests.contract import exact, smallest

TINY = smallest("bitgen")


def fresh_model(**changes):
    """A new model of the tiny sizes, or of others."""
    return bitgen.Model(replace(TINY, **changes), rngs=nnx.Rngs(0))


@nnx.jit
def call(made, tokens, **options):
    return made(tokens, **options)


@nnx.jit
def losses(made, batch, rngs):
    return bitgen.loss(made, batch, rngs)


# Step by step these compile hundreds of small programs.
prefill = nnx.jit(bitgen.Model.prefill, static_argnums=3)
recollect = nnx.jit(bitgen.Model.recollect)
decode = nnx.jit(bitgen.Model.decode)
write, forget, read, codes_of = (
    nnx.jit(f) for f in (bitgen.write, bitgen.forget, bitgen.read, remember.codes)
)


@pytest.fixture(scope="module")
def model():
    """Tiny, its gates open, so that both sides see each other."""
    made = fresh_model()
    made.text[-1].gate[...] = jnp.asarray(0.7)
    made.image[-1].gate[...] = jnp.asarray(-0.6)
    return made


def texts(rows: int, t: int = 9, seed: int = 0):
    drawn = np.random.default_rng(seed).integers(0, TINY.vocab, (rows, t))
    return jnp.asarray(drawn, jnp.int32)


def pictures(rows: int, side: int = 56, seed: int = 0):
    drawn = np.random.default_rng(seed).uniform(size=(rows, side, side, 3))
    return jnp.asarray(drawn, jnp.float32)


def batch_of(rows: int, seed: int = 0):
    tokens = texts(rows, 9, seed)
    mask = (jnp.arange(9) < jnp.asarray([9, 7, 5, 3])[jnp.arange(rows) % 4][:, None]).astype(int)
    images = jnp.asarray(255 * pictures(rows, seed=seed), jnp.uint8)
    ids = jnp.arange(rows, dtype=jnp.int32)
    return {"tokens": tokens, "mask": mask, "images": images, "image_id": ids}


@pytest.mark.slow
def test_a_call(model):
    tokens, images = texts(3), pictures(3)
    out = call(model, tokens, images=images, targets=tokens)
    assert out.embeddings.shape == (3, 9, TINY.dim)
    assert out.decoder_logits.shape == (3, 9, TINY.vocab)
    assert out.decoder_logits.dtype == jnp.float32
    for features in (out.text_features, out.image_features):
        np.testing.assert_allclose(jnp.linalg.norm(features, axis=1), 1, atol=1e-5)
    alone = call(model, tokens)
    assert alone.image_features is None
    assert alone.decoder_logits is None
    np.testing.assert_allclose(alone.text_features, out.text_features, atol=1e-6)
    assert jnp.abs(alone.embeddings - out.embeddings).max() > 0.01


@pytest.mark.slow
def test_a_fused_encoder_begins_as_two():
    fresh = fresh_model()
    tokens, images = texts(2), pictures(2)
    out = call(fresh, tokens, images=images)
    np.testing.assert_allclose(out.embeddings, call(fresh, tokens).embeddings, atol=1e-6)


@pytest.mark.slow
def test_rows_and_padding_do_not_matter(model):
    with jax.enable_x64(True):
        real, tokens, images = exact(model), texts(3), pictures(3).astype(jnp.float64)
        mask = (jnp.arange(9) < jnp.asarray([9, 4, 6])[:, None]).astype(jnp.int32)
        out = call(real, tokens, images=images, targets=tokens, mask=mask)
        row = call(real, tokens[1:2, :4], images=images[1:2], targets=tokens[1:2, :4])
        np.testing.assert_allclose(row.text_features, out.text_features[1:2], atol=1e-5)
        np.testing.assert_allclose(row.image_features, out.image_features[1:2], atol=1e-5)
        np.testing.assert_allclose(row.embeddings, out.embeddings[1:2, :4], atol=1e-5)
        np.testing.assert_allclose(row.decoder_logits, out.decoder_logits[1:2, :4], atol=1e-5)


@pytest.mark.slow
def test_the_decoder_sees_no_later_token(model):
    tokens, images = texts(1), pictures(1)
    changed = tokens.at[:, 5].add(1) % TINY.vocab
    one = call(model, tokens, images=images, targets=tokens).decoder_logits
    other = call(model, tokens, images=images, targets=changed).decoder_logits
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert jnp.abs(one[:, 6:] - other[:, 6:]).max() > 1e-3


@pytest.mark.slow
def test_writing_token_by_token_is_the_whole_forward(model):
    """With the prompt padded, and with none at all; the cache grows on the way."""
    with jax.enable_x64(True):
        real, tokens, images = exact(model), texts(2, 12), pictures(2).astype(jnp.float64)
        whole = call(real, tokens, images=images, targets=tokens).decoder_logits
        padded = jnp.pad(tokens[:, :4], ((0, 0), (0, 4)))
        for begun, length in ((padded, 4), (tokens[:, :0], 0)):
            logits, cache = prefill(real, begun, length, 8, images)
            np.testing.assert_allclose(logits, whole[:, length], atol=1e-5)
            cache = cache.grown(12)
            for t in range(length, 11):
                logits, cache = decode(real, tokens[:, t : t + 1], cache)
                np.testing.assert_allclose(logits[:, 0], whole[:, t + 1], atol=1e-5)


@pytest.mark.slow
def test_a_full_context_is_written(model):
    tokens, images = texts(1, TINY.context), pictures(1)
    whole = call(model, tokens, images=images, targets=tokens).decoder_logits
    logits, cache = prefill(model, tokens[:, :-1], TINY.context - 1, TINY.context, images)
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-2)  # levels of 8 bits may differ
    decode(model, tokens[:, -1:], cache)


@pytest.mark.parametrize("t", [0, TINY.context + 1])
def test_texts_that_do_not_fit_are_refused(model, t):
    with pytest.raises(Problem) as caught:
        model(jnp.zeros((1, t), jnp.int32))
    assert caught.value.exit_code == 2
    with pytest.raises(Problem):
        call(model, texts(1), targets=jnp.zeros((1, t), jnp.int32))


@pytest.mark.slow
def test_as_many_images_as_texts(model):
    with pytest.raises(Problem) as caught:
        model(texts(2), images=pictures(1))
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_images_of_another_size_are_resized(model):
    small = pictures(2, 28)
    large = jax.image.resize(small, (2, 56, 56, 3), "linear", antialias=False)
    one, other = (call(model, texts(2), images=x).image_features for x in (small, large))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"image_size": 49}, {"merge": 3}, {"heads": 3}, {"fused": 2}])
def test_sizes_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(Problem) as caught:
        replace(TINY, **wrong)
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_loss_and_metrics(model):
    batch = batch_of(8)
    value, aux = losses(model, batch, None)
    metrics = aux["metrics"]
    assert set(metrics) == {
        "contrastive_loss", "acc_t2i", "acc_i2t", "itm_loss", "itm_acc", "text_loss", "perplexity",
        "token_accuracy", "memory_kl_loss", "memory_utilization", "memory_quality", "temperature",
    }  # fmt: skip
    assert all(x.dtype == jnp.float32 and jnp.isfinite(x) for x in metrics.values())
    names = ("contrastive_loss", "itm_loss", "text_loss", "memory_kl_loss")
    assert model.config.weights == (1.0, 0.5, 3.0, 0.1)
    assert bitgen.PRESETS["card"].weights == (1.0, 0.5, 0.5, 0.1)
    total = sum(
        weight * metrics[name] for weight, name in zip(model.config.weights, names, strict=True)
    )
    assert float(value) == pytest.approx(float(total), rel=1e-6)
    assert float(value) == float(losses(model, batch, None)[0])  # nothing is drawn
    drawn = [float(losses(model, batch, nnx.Rngs(dropout=i))[0]) for i in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.slow
def test_writing_is_smoothed_cross_entropy_without_padding(model):
    """Of eight rows, two write from the memory alone, one from both, the others from the image."""
    with jax.enable_x64(True):  # in float32 a row's 8-bit levels depend on its neighbours
        model = exact(model)
        batch = batch_of(8)
        metrics = losses(model, batch, None)[1]["metrics"]
        tokens, mask = batch["tokens"], batch["mask"]
        real = model.padding_mask(tokens, mask)
        seen = encoders.upper_image(model, encoders.lower_image(model, batch["images"] / 255))
        keys = model.image_pool(seen.mean(axis=1))
        codes = codes_of(model, tokens, mask)
        # One memory holds all rows: its slots are more than they.
        stats = larimar.write(model.memory.stats, model.memory.address(keys), codes)
        both = [model.memory.read(keys), model.memory.read(keys, stats)]
        logits, alone, recalled = [], (True, 0), (False, 1)
        # By the first three bits of (√5 − 1) / 2 times the number of the image.
        kinds = [alone, alone, recalled, alone, (True, 1), alone, recalled, alone]
        for row, (image, code) in enumerate(kinds):
            part = slice(row, row + 1)
            context, sees = model.context(seen[part] if image else None, both[code][part])
            hidden = model.decoder.hidden(model.inputs(tokens[part]), context, sees)
            logits.append(hidden @ model.embed.embedding[...].T)
    rows = torch.tensor(np.concatenate(logits))[torch.tensor(np.asarray(real))]
    targets = torch.tensor(np.asarray(tokens)).long()[torch.tensor(np.asarray(real))]
    entropy = torch.nn.functional.cross_entropy
    smoothed = entropy(rows, targets, label_smoothing=0.1).item()
    assert float(metrics["text_loss"]) == pytest.approx(smoothed, abs=1e-4)
    assert float(metrics["perplexity"]) == pytest.approx(entropy(rows, targets).exp().item(), 1e-4)
    right = (rows.argmax(1) == targets).float().mean().item()
    assert float(metrics["token_accuracy"]) == pytest.approx(right)


@pytest.mark.slow
def test_the_queue_is_filled_after_the_loss():
    with jax.enable_x64(True):
        fresh, batch = exact(fresh_model()), batch_of(6)
        empty, other = exact(fresh_model()), batch_of(6, seed=1)
        _, aux = losses(fresh, batch, None)
        assert not fresh.queue.filled().any()
        bitgen.commit(fresh, aux)
        assert int(fresh.queue.filled().sum()) == 6
        images = batch["images"].astype(jnp.float64) / 255
        out = call(fresh, batch["tokens"], images=images, mask=batch["mask"])
        np.testing.assert_allclose(fresh.queue.text[:6], out.text_features, atol=1e-5)
        np.testing.assert_allclose(fresh.queue.image[:6], out.image_features, atol=1e-5)
        np.testing.assert_array_equal(fresh.queue.ids[:6], batch["image_id"])
        other["image_id"] += 6
        value = [losses(made, other, None)[1]["metrics"] for made in (fresh, empty)]
        assert float(value[0]["contrastive_loss"]) > float(value[1]["contrastive_loss"])


@pytest.mark.slow
def test_hard_negatives_of_the_queue():
    """Of an empty queue they are those of the batch; then what it holds is matched too."""
    with jax.enable_x64(True):
        queued, plain = exact(fresh_model(queue_inputs=True)), exact(fresh_model())
        for made in (queued, plain):
            made.text[-1].gate[...] = jnp.asarray(0.7)
        first, second = batch_of(4), batch_of(4, seed=1)
        second["image_id"] += 4
        found = [losses(made, first, None) for made in (queued, plain)]
        assert float(found[0][0]) == pytest.approx(float(found[1][0]), abs=1e-9)
        bitgen.commit(queued, found[0][1])
        bitgen.commit(plain, found[1][1])
        np.testing.assert_array_equal(queued.queued.tokens[:4, :9], first["tokens"])
        np.testing.assert_array_equal(queued.queued.mask[:4, :9], first["mask"] == 1)
        np.testing.assert_array_equal(queued.queued.images[:4], first["images"])
        # As near to every image and text of the batch as can be: each row's hardest.
        for made in (queued, plain):
            images = second["images"].astype(jnp.float64) / 255
            out = call(made, second["tokens"], images=images, mask=second["mask"])
            made.queue.image[0] = out.text_features[0]
            made.queue.text[0] = out.image_features[0]
        of_queue, of_batch = (losses(made, second, None)[1]["metrics"] for made in (queued, plain))
        assert float(of_queue["contrastive_loss"]) == pytest.approx(
            float(of_batch["contrastive_loss"]), abs=1e-9
        )
        assert abs(float(of_queue["itm_loss"]) - float(of_batch["itm_loss"])) > 1e-6
        other = batch_of(4, seed=2)
        queued.queued.images[:4] = other["images"]
        assert float(losses(queued, second, None)[1]["metrics"]["itm_loss"]) != float(
            of_queue["itm_loss"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_and_texts_alone(model, rows):
    """A batch of one has no negatives; texts alone are written and remembered."""
    value, aux = losses(model, batch_of(rows), nnx.Rngs(dropout=0))
    assert jnp.isfinite(value)
    value, aux = losses(model, {"tokens": texts(rows)}, nnx.Rngs(dropout=0))
    assert jnp.isfinite(value)
    assert "contrastive_loss" not in aux["metrics"]
    before = int(model.queue.total[...])
    bitgen.commit(model, aux)
    assert int(model.queue.total[...]) == before


@pytest.mark.slow
def test_all_parameters_are_trained_once_the_gates_open(model):
    graphdef, params, rest = split(model)
    batch = batch_of(8)

    def loss(p):
        return bitgen.loss(graphdef.merge(p, rest), batch, nnx.Rngs(dropout=0))[0]

    grads = jax.jit(jax.grad(loss))(params)
    dead = {path for path, grad in grads.items() if not jnp.abs(grad).max() > 0}
    assert dead == {"vision/mask"}


@pytest.mark.slow
def test_a_step_makes_the_loss_smaller():
    graphdef, params, rest = split(fresh_model())
    batch = batch_of(8)
    loss = jax.jit(
        jax.value_and_grad(lambda p: bitgen.loss(graphdef.merge(p, rest), batch, None)[0])
    )
    first, grads = loss(params)
    # Ternary weights move in jumps: many small steps, not one.
    for _ in range(5):
        params = {p: x - 0.02 * grads[p] for p, x in params.items()}
        value, grads = loss(params)
    assert value < first


@pytest.mark.slow
def test_a_packed_model_says_the_same(model):
    packed, tokens, images = bitgen.pack(model), texts(2), pictures(2)
    ours = call(model, tokens, images=images, targets=tokens)
    for one, other in zip(call(packed, tokens, images=images, targets=tokens), ours, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    size, weights = bitlinear.ternary_size(packed)
    assert weights == bitlinear.ternary_size(model)[1] > 100_000
    assert size / weights <= 0.27
    kernels = {path for path in params_of(packed) if path.endswith("kernel")}
    assert not any("/attn/" in p or "/mlp/" in p for p in kernels if not p.startswith("vision"))
    logits, cache = prefill(packed, tokens[:, :3], 3, 12, images)
    np.testing.assert_allclose(logits, ours.decoder_logits[:, 3], atol=1e-2)
    decode(packed, tokens[:, 3:4], cache)


@pytest.mark.slow
def test_writing_reading_and_forgetting(model):
    tokens, images = texts(12, seed=3), pictures(12, seed=3)
    codes = codes_of(model, tokens)
    stats = write(model, tokens, images)
    assert int(stats.number) == 12
    assert int(model.memory.count[...]) == 0  # nothing was changed
    found = read(model, images=images, stats=stats)
    best, cosine = remember.nearest(found, codes)
    np.testing.assert_array_equal(best, jnp.arange(12))
    assert cosine.min() > 0.9
    less = forget(model, tokens[4:], images[4:], stats=stats)
    again = write(model, tokens[:4], images[:4])
    for one, other in zip(less, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    by_text = read(model, tokens, stats=write(model, tokens))
    np.testing.assert_array_equal(remember.nearest(by_text, codes)[0], jnp.arange(12))


@pytest.mark.slow
def test_what_is_set_is_what_the_decoder_recollects(model):
    tokens, images = texts(2, seed=3), pictures(2, seed=3)
    stats = write(model, tokens, images)
    graphdef, params, rest = split(model)
    with_facts = graphdef.merge(params, dict(rest))
    before, _ = recollect(with_facts, images)
    with_facts.memory.set(stats)
    after, cache = recollect(with_facts, images)
    assert jnp.abs(after - before).max() > 1e-4
    decode(with_facts, texts(2, 1), cache)
    assert cache.sees.shape == (2, 1)  # not the image
    state = nnx.state(with_facts, Written)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(64, 64), ()}
    drawn = with_facts(
        tokens, images=images, targets=tokens, noise=jnp.ones((2, TINY.slots))
    ).decoder_logits
    mean = call(with_facts, tokens, images=images, targets=tokens).decoder_logits
    assert jnp.abs(drawn - mean).max() > 1e-5


@pytest.mark.slow
def test_slow_encoders_follow_and_make_the_queue():
    with jax.enable_x64(True):
        made = exact(fresh_model(momentum=0.9))
        batch = batch_of(4)
        images = batch["images"].astype(jnp.float64) / 255

        def features():
            return call(made, batch["tokens"], images=images).image_features

        _, aux = losses(made, batch, None)
        bitgen.commit(made, aux)  # the first time they are the encoders
        own = features()
        np.testing.assert_allclose(made.queue.image[:4], own, atol=1e-5)
        before = made.project.kernel[...]
        change = jnp.sin(jnp.arange(before.size)).reshape(before.shape)
        made.project.kernel[...] = before + change
        _, aux = losses(made, batch, None)
        bitgen.commit(made, aux)
        np.testing.assert_allclose(made.queue.image[4:8], own, atol=1e-5)
        slow = getattr(made.slow, "project.kernel")[...]
        np.testing.assert_allclose(slow, before + 0.1 * change, atol=1e-6)
        assert jnp.abs(features() - own).max() > 1e-3


@pytest.mark.slow
def test_the_whole_batch_is_compared():
    assert bitgen.CROSS_ROW_LOSS is objectives.CROSS_ROW_LOSS is True
