import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_pipelines
from data_pipelines.errors import DataProblem
from data_pipelines.loader import Validation, Windows, batches, epoch_keys, permute

ROOT = Path(data_pipelines.__file__).parents[1]
# A token is its own position, so that a window shows where it starts.
TOKENS = np.arange(1000, dtype=np.uint16)
GOLDEN = [219, 525, 549, 629, 476, 680, 574, 30, 856, 722, 590, 439, 124, 103, 619, 11]


def starts(windows, count):
    return np.concatenate([windows[i]["tokens"][:, 0] for i in range(count)])


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**40))
def test_permute_is_a_bijection(n, seed, epoch):
    out = permute(np.arange(n, dtype=np.uint64), n, epoch_keys(seed, epoch))
    assert np.array_equal(np.sort(out), np.arange(n))


@given(n=st.integers(2**30, 2**48), first=st.integers(0, 2**29), seed=st.integers(0, 99))
def test_permute_stays_inside_a_large_range(n, first, seed):
    out = permute(np.arange(first, first + 256, dtype=np.uint64), n, epoch_keys(seed, 0))
    assert len(np.unique(out)) == 256
    assert out.max() < n


def test_the_order_looks_random():
    n = 100_003
    x = np.arange(n, dtype=np.uint64)
    orders = [permute(x, n, epoch_keys(*drawn)).astype(int) for drawn in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        # Standard deviations of these correlations are 1/sqrt(n), about 0.003.
        for lag in (1, 2, 3, 64):
            assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.02
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.02
        # The steps from one start to the next repeat no more than by chance (about n/1.6).
        assert len(np.unique(np.diff(order))) > 0.4 * n
        # Any tenth of the order covers the text evenly: 20 cells of 500 expect ±22.
        cells = np.histogram(order[: n // 10], bins=20, range=(0, n))[0]
        assert abs(cells - 500).max() < 150
    assert np.mean(orders[0] == orders[1]) < 0.001
    assert np.mean(orders[0] == orders[2]) < 0.001


@given(
    tokens=st.integers(2, 80),
    context=st.integers(1, 20),
    batch=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_an_epoch_takes_every_start_once(tokens, context, batch, seed):
    n = tokens - context
    if n < 1:
        return
    found = starts(Windows(TOKENS[:tokens], context, batch, seed), -(-3 * n // batch))
    for epoch in range(3):
        assert np.array_equal(np.sort(found[epoch * n : (epoch + 1) * n]), np.arange(n))


def test_each_epoch_has_an_order_of_its_own():
    n = 60
    found = starts(Windows(TOKENS[: n + 8], 8, 10, 3), 3 * n // 10)
    orders = {tuple(found[epoch * n : (epoch + 1) * n].tolist()) for epoch in range(3)}
    assert len(orders) == 3


def test_windows_are_consecutive_tokens():
    windows = Windows(TOKENS, 16, 8)
    batch = windows[12345]["tokens"]
    assert batch.dtype == np.int32
    assert batch.shape == (8, 17)
    assert np.array_equal(batch, batch[:, :1] + np.arange(17))


def test_batches_depend_on_seed_and_number_only():
    one, two = Windows(TOKENS, 16, 8, seed=3), Windows(TOKENS, 16, 8, seed=3)
    two[0], two[7]
    assert np.array_equal(one[500]["tokens"], two[500]["tokens"])
    assert not np.array_equal(one[500]["tokens"], one[501]["tokens"])
    assert not np.array_equal(one[500]["tokens"], Windows(TOKENS, 16, 8, seed=4)[500]["tokens"])


def test_the_order_never_changes():
    # A checkpoint of today must find the same batches in every later version.
    assert starts(Windows(TOKENS, 16, 8, seed=5), 2).tolist() == GOLDEN


@given(count=st.sampled_from([1, 2, 3, 6]), i=st.integers(0, 500))
def test_rows_make_up_the_batch(count, i):
    whole = Windows(TOKENS, 9, 12, seed=1)[i]["tokens"]
    parts = [
        Windows(TOKENS, 9, 12, 1, rows)[i]["tokens"] for rows in np.split(np.arange(12), count)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"context": 0},
        {"batch": 0},
        {"seed": -1},
        {"context": 1000},
    ],
)
def test_senseless_sizes_are_refused(wrong):
    with pytest.raises(DataProblem) as caught:
        Windows(TOKENS, **({"context": 16, "batch": 8} | wrong))
    assert caught.value.exit_code == 2


RESUME = """
import json, sys
import numpy as np
from data_pipelines.loader import batches
for state in json.load(sys.stdin):
    it = batches(np.arange(1000, dtype=np.uint16), context=16, batch=8, seed=7)
    it.set_state(state)
    print(json.dumps([next(it)["tokens"][:, 0].tolist() for _ in range(2)]))
    it.close()
"""


@pytest.mark.slow
def test_resume_is_exact_after_every_batch_in_a_fresh_process():
    it = batches(TOKENS, context=16, batch=8, seed=7)
    states, seen = [it.get_state()], []
    for _ in range(130):  # more than an epoch of 123 batches
        seen.append(next(it)["tokens"][:, 0].tolist())
        states.append(it.get_state())
    ran = subprocess.run(
        [sys.executable, "-c", RESUME],
        input=json.dumps(states),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    resumed = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(resumed) == 131
    for k in range(129):
        assert resumed[k] == seen[k : k + 2]


def test_a_running_iterator_goes_back_and_forth():
    it = batches(TOKENS, context=16, batch=8, seed=7)
    start = it.get_state()
    first = [next(it)["tokens"] for _ in range(20)]
    later = it.get_state()
    following = next(it)["tokens"]
    time.sleep(0.05)  # let the threads read ahead
    it.set_state(start)
    assert np.array_equal([next(it)["tokens"] for _ in range(20)], first)
    it.set_state(later)
    assert np.array_equal(next(it)["tokens"], following)


def test_the_iterator_gives_the_batches_in_order():
    it = batches(TOKENS, context=16, batch=8, seed=7, rows=np.arange(4, 8))
    windows = Windows(TOKENS, 16, 8, 7, np.arange(4, 8))
    for i in range(50):
        assert np.array_equal(next(it)["tokens"], windows[i]["tokens"])


@given(tokens=st.integers(0, 300), context=st.integers(1, 20), batch=st.integers(1, 10))
def test_validation_predicts_every_target_once(tokens, context, batch):
    found = Validation(TOKENS[:tokens], context, batch)
    windows = max(0, (tokens - 1) // context)
    assert len(found) == -(-windows // batch)
    assert all(len(one["tokens"]) == batch for one in found[:-1])
    targets = [window[1:] for one in found for window in one["tokens"]]
    expected = 1 + np.arange(windows * context)
    assert np.array_equal(np.concatenate([[], *targets]), expected)


def test_fewer_validation_batches_are_spread_evenly():
    every = Validation(TOKENS, 9, 5)  # 22 full batches and one window
    some = Validation(TOKENS, 9, 5, max_batches=4)
    assert [batch["tokens"][0, 0] // 45 for batch in some] == [0, 5, 11, 16]
    assert all(batch["tokens"].shape == (5, 10) for batch in some)
    assert len(every) == 23
    assert every[22]["tokens"].shape == (1, 10)
    assert len(Validation(TOKENS, 9, 5, max_batches=22)) == 22
    assert {len(batch["tokens"]) for batch in Validation(TOKENS, 9, 5, max_batches=22)} == {5}
    whole = Validation(TOKENS, 9, 5, max_batches=23)  # all that there is, the window too
    assert [len(batch["tokens"]) for batch in whole] == 22 * [5] + [1]
    assert len(Validation(TOKENS, 9, 5, max_batches=0)) == 0
    assert len(every[1:3]) == 2
    assert np.array_equal(every[-1]["tokens"], every[22]["tokens"])


def test_the_only_validation_batch_may_be_small():
    for most in (None, 20):
        (only,) = Validation(TOKENS[:40], 9, 64, most)
        assert only["tokens"].shape == (4, 10)
        assert only["tokens"].dtype == np.int32


@pytest.mark.slow
@given(
    tokens=st.lists(st.integers(0, 3), min_size=30, max_size=80),
    context=st.integers(1, 9),
    batch=st.integers(1, 4),
)
def test_segments_number_the_documents_of_a_window(tokens, context, batch):
    data = np.asarray(tokens, np.uint16)
    made = [
        Windows(data, context, batch, end_of_text=0)[3],
        Validation(data, context, batch, end_of_text=0)[0],
    ]
    plain = [Windows(data, context, batch)[3], Validation(data, context, batch)[0]]
    for with_segments, without in zip(made, plain, strict=True):
        assert without.keys() == {"tokens"}
        assert np.array_equal(with_segments["tokens"], without["tokens"])
        assert with_segments["segments"].dtype == np.int32
        for row, segments in zip(without["tokens"], with_segments["segments"], strict=True):
            # The end of a text (0) belongs to what it ends.
            expected = [int((row[:i] == 0).sum()) for i in range(len(row))]
            assert segments.tolist() == expected
