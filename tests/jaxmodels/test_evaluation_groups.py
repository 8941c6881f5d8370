"""Evaluation of images with captions does not depend on how rows are batched."""

from itertools import chain
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels
from jaxmodels.bitgen.objectives import _turns
from jaxmodels.commands.eval import Eval, _refuse_no_number
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.runtime.batches import first_rows, regroup
from jaxmodels.runtime.evaluate import GROUP, evaluate, loss_function
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.retrieval import duplicate_ids, recalls
from tests.contract import smallest

ROWS = 45


def rows(config, count: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, count)
    return {
        "tokens": rng.integers(0, config.vocab, (count, 8)).astype(np.int32),
        "mask": (np.arange(8) < lengths[:, None]).astype(np.int32),
        "images": rng.integers(0, 256, (count, 28, 28, 3)).astype(np.uint8),
        "image_id": rng.permutation(1000)[:count].astype(np.int32),
    }


def cut(whole: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    count = len(whole["tokens"])
    return [{k: v[i : i + size] for k, v in whole.items()} for i in range(0, count, size)]


@pytest.mark.parametrize("size", [1, 3, 8, 31, 32, 33, 64, 200])
@pytest.mark.parametrize("count", [1, 5, 31, 32, 33, 64, 65, 100])
def test_groups_are_of_the_rows_alone(size, count):
    whole = {"tokens": np.arange(count), "images": np.arange(count)}
    found = list(regroup(cut(whole, size), 32))
    expected = [32] * max(count // 32 - 1, 0)
    assert [len(batch["images"]) for batch in found] == [*expected, count - sum(expected)]
    np.testing.assert_array_equal(np.concatenate([b["tokens"] for b in found]), whole["tokens"])
    few = list(first_rows(cut(whole, size), 7))
    assert list(chain(*(b["tokens"] for b in few))) == list(range(min(7, count)))


def test_nothing_has_no_groups():
    assert list(regroup([], GROUP)) == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bitgen", "bitgen_stage1"])
def test_no_number_depends_on_the_batches(arch):
    package, config = jaxmodels.arch(arch), smallest(arch)
    model = nnx.jit(lambda: package.Model(config, rngs=nnx.Rngs(0)))()
    graphdef, params, rest = split(model)
    loss, whole = loss_function(package, graphdef), rows(config)
    one, *others = (evaluate(loss, params, rest, cut(whole, n)) for n in (8, 1, 3, ROWS))
    assert one.keys() >= {"loss", "text_loss", "itm_acc", "contrastive_loss"}
    for other in others:
        assert other == pytest.approx(one, abs=1e-6)


def test_whether_a_row_sees_its_image_is_decided_by_its_image():
    ids = np.random.default_rng(0).permutation(5000)[:800].astype(np.int32)
    batch = {"tokens": np.zeros((800, 1)), "image_id": jnp.asarray(ids)}
    turns = np.asarray(_turns(batch, training=False))
    order = np.random.default_rng(1).permutation(800)
    moved = _turns({k: v[order] for k, v in batch.items()}, training=False)
    np.testing.assert_array_equal(moved, turns[order])
    assert np.bincount(turns, minlength=8).min() > 60  # each of the eight has its share
    for step in (2, 3, 4, 8):  # also where a source numbers its images in steps
        few = {"tokens": np.zeros((400, 1)), "image_id": jnp.arange(400, dtype=jnp.int32) * step}
        assert np.bincount(_turns(few, training=False), minlength=8).min() > 30
    np.testing.assert_array_equal(_turns(batch, training=True), np.arange(800))


def test_equal_captions_and_images_are_right():
    """Two images of one look, and a caption that was said of two."""
    images = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
    image_of_text = np.asarray([0, 1, 2, 3])
    # Texts 0 and 1 are the same words, and lie with image 1; 3 is of an image that looks like 2.
    texts = np.eye(4, dtype=np.float32)[[1, 1, 2, 2]]
    plain = recalls(images, texts, image_of_text)
    assert (plain["t2i_recall_at_1"], plain["i2t_recall_at_1"]) == (0.25, 0.0)
    pixels = [np.full((2, 2, 3), i, np.uint8) for i in (0, 1, 2, 2)]
    words = [np.asarray(w) for w in ([1, 2], [1, 2], [3, 4], [4, 3])]
    assert duplicate_ids(pixels).tolist() == [0, 1, 2, 2]
    told = recalls(
        images, texts, image_of_text, image_ids=duplicate_ids(pixels), text_ids=duplicate_ids(words)
    )
    assert told["t2i_recall_at_1"] == 1.0
    assert told["i2t_recall_at_1"] == 0.75  # image 0 is like no text at all
    other = recalls(images, texts, image_of_text, text_ids=np.arange(4), image_ids=np.arange(4))
    assert other == plain


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_no_result(loss):
    with pytest.raises(Problem, match="not finite") as caught:
        _refuse_no_number(Eval(Path("model")), float(loss))
    assert caught.value.exit_code == UNVERIFIED
    _refuse_no_number(Eval(Path("model")), 0.0)
