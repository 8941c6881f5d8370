"""FIBER's objectives: the queue, contrast with what counts as a pair, and hard negatives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxmodels.bitgen import fiber
from jaxmodels.bitgen.config import PRESETS
from jaxmodels.layers.contrast import Queue, alike, clamped, contrast

CONFIG = PRESETS["tiny"].__class__(dim=8, heads=2, queue=6, vocab=16)


def units(seed: int, rows: int):
    x = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def ids(*numbers: int):
    return jnp.asarray(numbers, jnp.int32)


def test_the_queue_is_a_ring():
    queue = Queue(CONFIG.queue, CONFIG.dim)
    assert not queue.filled().any()
    rows = units(0, 20)
    queue.push(rows[:4], -rows[:4], ids(0, 1, 2, 3))
    np.testing.assert_array_equal(queue.filled(), [True] * 4 + [False] * 2)
    queue.push(rows[4:8], -rows[4:8], ids(4, 5, 6, 7))
    assert queue.filled().all()
    np.testing.assert_array_equal(queue.ids[...], [6, 7, 2, 3, 4, 5])
    np.testing.assert_array_equal(queue.text[...], rows[np.asarray(queue.ids[...])])
    np.testing.assert_array_equal(queue.image[...], -queue.text[...])
    queue.push(rows[8:], rows[8:], jnp.arange(8, 20, dtype=jnp.int32))  # more than it holds
    np.testing.assert_array_equal(np.sort(queue.ids[...]), np.arange(14, 20))


def test_the_place_in_the_queue_never_overflows():
    queue, last = Queue(CONFIG.queue, CONFIG.dim), 0
    for i in range(40):
        queue.push(units(i, 4), units(i, 4), jnp.arange(4 * i, 4 * i + 4, dtype=jnp.int32))
        last = 4 * i + 4
        assert int(queue.total[...]) < 2 * CONFIG.queue
        kept = min(last, CONFIG.queue)
        held = np.sort(np.asarray(queue.ids[...])[np.asarray(queue.filled())])
        np.testing.assert_array_equal(held, np.arange(last - kept, last))


def contrasted(queue: Queue, images, same=None, temperature: float = 0.2):
    text, image = units(1, len(images)), units(2, len(images))
    same = jnp.equal(images[:, None], images[None]) if same is None else same
    both = (text, image)
    return contrast(both, both, queue, images, same, jnp.asarray(temperature)), both


def test_different_images_are_plain_cross_entropy():
    queue = Queue(CONFIG.queue, CONFIG.dim)
    found, (text, image) = contrasted(queue, ids(1, 2, 3, 4))
    t, i = torch.tensor(np.asarray(text)), torch.tensor(np.asarray(image))
    entropy = torch.nn.functional.cross_entropy
    expected = (
        entropy(t @ i.T / 0.2, torch.arange(4)) + entropy(i @ t.T / 0.2, torch.arange(4))
    ) / 2
    assert float(found.loss) == pytest.approx(expected.item(), abs=1e-5)
    assert float(found.acc_t2i) == pytest.approx(
        ((t @ i.T).argmax(1) == torch.arange(4)).float().mean().item()
    )
    np.testing.assert_allclose(found.t2i[:, :4], t @ i.T / 0.2, atol=1e-5)


def test_only_what_the_queue_was_filled_with_counts():
    queue = Queue(CONFIG.queue, CONFIG.dim)
    queue.push(units(3, 2), units(4, 2), ids(8, 9))
    # Whatever lies in places that are not filled yet.
    queue.text[...] = queue.text[...].at[2:].set(100.0)
    queue.image[...] = queue.image[...].at[2:].set(100.0)
    found, (text, image) = contrasted(queue, ids(1, 2, 3, 4))
    t, i = torch.tensor(np.asarray(text)), torch.tensor(np.asarray(image))
    entropy = torch.nn.functional.cross_entropy
    held_i, held_t = torch.tensor(np.asarray(units(4, 2))), torch.tensor(np.asarray(units(3, 2)))
    one = entropy(t @ torch.cat([i, held_i]).T / 0.2, torch.arange(4))
    other = entropy(i @ torch.cat([t, held_t]).T / 0.2, torch.arange(4))
    assert float(found.loss) == pytest.approx(((one + other) / 2).item(), abs=1e-5)


def test_captions_of_one_image_share_the_target():
    """In the batch and in the queue; torch's cross-entropy takes such targets."""
    queue = Queue(CONFIG.queue, CONFIG.dim)
    queue.push(units(3, 3), units(4, 3), ids(2, 9, 2))
    found, (text, image) = contrasted(queue, ids(1, 2, 2))
    t, i = torch.tensor(np.asarray(text)), torch.tensor(np.asarray(image))
    target = torch.tensor(
        [[1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1]], dtype=torch.float32
    )
    target = target / target.sum(1, keepdim=True)
    held_i, held_t = torch.tensor(np.asarray(units(4, 3))), torch.tensor(np.asarray(units(3, 3)))
    entropy = torch.nn.functional.cross_entropy
    one = entropy(t @ torch.cat([i, held_i]).T / 0.2, target)
    other = entropy(i @ torch.cat([t, held_t]).T / 0.2, target)
    assert float(found.loss) == pytest.approx(((one + other) / 2).item(), abs=1e-5)


def test_keys_get_no_gradient():
    queue = Queue(CONFIG.queue, CONFIG.dim)

    def loss(keys):
        queries, images = (units(1, 3), units(2, 3)), ids(1, 2, 3)
        same = jnp.eye(3, dtype=bool)
        return contrast(queries, keys, queue, images, same, jnp.asarray(0.1)).loss

    for gradient in jax.grad(loss)((units(5, 3), units(6, 3))):
        assert not gradient.any()


def test_rows_of_the_same_words_are_alike():
    tokens = jnp.asarray([[1, 2], [1, 3], [1, 2], [4, 4]])
    expected = np.eye(4, dtype=bool)
    expected[0, 2] = expected[2, 0] = True  # of the same words
    expected[1, 3] = expected[3, 1] = True  # of the same image
    np.testing.assert_array_equal(alike(ids(1, 2, 3, 2), tokens), expected)


def test_negatives_follow_the_similarities_and_are_no_pairs():
    sims = jnp.asarray([[9.0, 1.0, 2.0, 0.0], [0.0, 9.0, 9.0, 1.0]] + [[0.0] * 4] * 2)
    same = jnp.eye(4, dtype=bool).at[1, 2].set(True)
    best, some = fiber.negatives(sims, same, None)
    np.testing.assert_array_equal(best[:2], [2, 3])
    assert some.all()
    draw = jax.jit(lambda key: fiber.negatives(sims, same, nnx.Rngs(dropout=key))[0])
    drawn = np.stack([draw(jax.random.key(i)) for i in range(3000)])
    assert not same[np.arange(4), drawn].any()
    share = np.bincount(drawn[:, 0], minlength=4) / len(drawn)
    expected = np.exp([-np.inf, 1, 2, 0]) / np.exp([1, 2, 0]).sum()
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / 3000**0.5)


def test_rows_without_a_negative_do_not_count():
    same = jnp.ones((2, 2), bool)
    _, some = fiber.negatives(jnp.zeros((2, 2)), same, nnx.Rngs(dropout=0))
    assert not some.any()
    logits = jnp.asarray([[0.0, 1.0], [2.0, 0.0], [5.0, 0.0]])
    labels, counts = ids(1, 0, 1), jnp.asarray([True, True, False])
    loss, accuracy = fiber.matching(logits, labels, counts)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 0])
    )
    assert float(loss) == pytest.approx(expected.item(), abs=1e-6)
    assert float(accuracy) == 1


def rows(*numbers: int):
    """Texts of one word and grey images, by which each row is known."""
    tokens = jnp.zeros((len(numbers), 3), jnp.int32).at[:, 0].set(jnp.asarray(numbers))
    images = jnp.broadcast_to(tokens[:, :1, None, None], (len(numbers), 14, 14, 3))
    mask = jnp.arange(3) < jnp.ones((len(numbers), 1), jnp.int32)
    return fiber.Rows(tokens, mask, images.astype(jnp.uint8))


def queued(*batches: tuple[int, ...]):
    """A queue of six places with these rows, and their inputs."""
    queue = Queue(CONFIG.queue, CONFIG.dim)
    inputs = fiber.Queued(replace(CONFIG, image_size=14, context=3))
    for numbers in batches:
        features = units(0, max(numbers) + 1)[jnp.asarray(numbers)]
        inputs.push(queue, rows(*numbers))
        queue.push(features, features, ids(*numbers))
    return queue, inputs


@pytest.mark.parametrize("batches", [[(1, 2, 3)], [(1, 2, 3, 4), (5, 6, 7, 8)], [range(1, 12)]])
def test_inputs_lie_where_their_features_lie(batches):
    queue, inputs = queued(*map(tuple, batches))
    filled = np.asarray(queue.filled())
    np.testing.assert_array_equal(inputs.tokens[:, 0][filled], queue.ids[...][filled])
    np.testing.assert_array_equal(inputs.images[:, 5, 5, 1][filled], queue.ids[...][filled])


def test_texts_and_images_are_drawn_from_batch_and_queue():
    _, inputs = queued((4, 5, 6))
    found = inputs.drawn(rows(7, 8), ids(0, 2, 4), ids(3, 1, 2))  # of 7, 8, 4, 5, 6 and nothing
    np.testing.assert_array_equal(found.tokens[:, 0], [7, 4, 6])
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [5, 8, 4])
    np.testing.assert_array_equal(found.mask[:, 0], [True] * 3)


def test_the_same_words_in_the_queue_are_no_negative():
    _, inputs = queued((4, 5, 4))
    batch = rows(4, 9)
    # What lies behind the mask does not matter.
    batch = batch._replace(tokens=batch.tokens.at[:, 2].set(3))
    nothing = [True] * 3
    expected = [[True, False, True, *nothing], [False, False, False, *nothing]]
    np.testing.assert_array_equal(inputs.alike(batch), expected)


def test_images_and_texts_of_other_sizes_fit_the_queue():
    cfg, mask = replace(CONFIG, image_size=14, context=5), jnp.ones((2, 3), bool)
    images = jnp.full((2, 28, 21, 3), 77, jnp.uint8)
    found = fiber.rows_of(cfg, {"tokens": jnp.ones((2, 3), jnp.int32), "images": images}, mask)
    np.testing.assert_array_equal(found.images, np.full((2, 14, 14, 3), 77, np.uint8))
    np.testing.assert_array_equal(found.tokens, [[1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(found.mask, [[True] * 3 + [False] * 2] * 2)


def test_empty_places_of_the_queue_are_never_negatives():
    queue, _ = queued((1, 2))
    found, _ = contrasted(queue, ids(1, 7))
    expected = [[True, False, True, False], [False, True, False, False]]
    np.testing.assert_array_equal(found.same[:, :4], expected)
    assert found.same[:, 4:].all()


@pytest.mark.slow
def test_the_temperature_is_clamped_and_can_come_back():
    for outside, bound in ((-1.0, 0.001), (3.0, 1.0), (0.5, 0.5)):
        value, slope = jax.value_and_grad(clamped)(jnp.asarray(outside))
        assert float(value) == pytest.approx(bound)
        assert float(slope) == 1
