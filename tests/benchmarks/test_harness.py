"""The arithmetic of comparisons, on contestants with known times."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from benchmarks import harness
from benchmarks.harness import Contestant, Run, Timing, race, ratio, save, table
from jaxmodels.errors import Problem
from jaxmodels.runtime.planning.flops import Product, products

times = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9)


@given(times, st.floats(0.01, 100))
def test_ratio_to_a_peer_that_is_always_so_many_times_as_slow(seconds, factor):
    ours, theirs = Timing("a", 0, seconds), Timing("b", 0, [factor * s for s in seconds])
    assert ratio(ours, theirs) == pytest.approx(factor)
    assert ratio(theirs, ours) == pytest.approx(1 / factor)


def test_ratio_is_taken_round_by_round():
    """A slow spell that meets both contestants of a round does not count."""
    ours, theirs = Timing("a", 0, [1, 10, 1]), Timing("b", 0, [2, 20, 100])
    assert ratio(ours, theirs) == 2


def test_contestants_are_called_in_turn_with_rotating_rounds():
    calls = []

    def maker(name):
        return Contestant(name, lambda: lambda index: calls.append((index, name)) or name)

    timings = race([maker("a"), maker("b")], rounds=2, warmup=1)
    assert calls == [(i, name) for i in range(3) for name in "ab"]
    assert [(t.name, len(t.seconds), t.value) for t in timings] == [("a", 2, "a"), ("b", 2, "b")]


def sleeper():
    held = np.ones(30_000_000, np.uint8)  # written, so that it counts as memory held

    def call(index):
        time.sleep(0.01)
        return int(held[index])

    return call


def failing():
    raise RuntimeError("this contestant cannot be built")


@pytest.mark.slow
def test_isolated_contestants_have_a_process_and_its_peak_memory():
    (timing,) = race([Contestant("a", sleeper)], rounds=1, isolated=True)
    assert timing.value == 1
    assert min(timing.seconds) >= 0.01
    assert timing.peak_bytes is None or timing.peak_bytes > 30_000_000


@pytest.mark.slow
def test_a_contestant_that_fails_in_its_process_ends_the_race():
    with pytest.raises(Problem, match="process of a contestant ended"):
        race([Contestant("a", failing)], rounds=1, isolated=True)


def test_records_say_everything_and_are_added_to_the_file(tmp_path):
    run = Run("suite", {"size": 1})
    timings = [Timing("a", 0.5, [1.0, 2.0, 4.0]), Timing("b", 0.5, [3.0, 6.0, 12.0])]
    records = run.records("case", timings, lambda timing: {"length": len(timing.name)})
    for _ in range(2):
        path = save(records, tmp_path / "results")
    assert path.name == "suite.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [*records, *records]
    first = lines[0]
    assert (first["median"], first["min"], first["max"], first["unit"]) == (2e3, 1e3, 4e3, "ms")
    assert first["times_ms"] == [1e3, 2e3, 4e3]
    assert (first["compile_ms"], lines[1]["compile_ms"]) == (0, 0)  # 0.5 s is less than a round
    assert first["times_as_fast_as"] == {"b": 3.0}
    assert lines[1]["times_as_fast_as"] == {"a": pytest.approx(1 / 3)}
    assert first["settings"] == {"size": 1}
    assert first["length"] == 1
    assert {"cpu", "cores", "memory_bytes", "platform", "devices"} <= set(first["machine"])
    assert {"python", "jax", "jaxlib", "flax", "torch", "transformers", "numpy"} <= set(
        first["versions"]
    )
    assert first["date"].endswith("+00:00")
    assert "| b | 6,000.0 | 3,000.0 | 12,000.0 | 1 | 3.00 |" in table(records, {"length": "n"})


def test_the_commit_is_that_of_the_checkout():
    assert harness.commit().removesuffix("-dirty").isalnum() or not harness.commit()


def test_products_are_counted_inside_loops():
    def function(x, w):
        def body(carry, _):
            return carry @ w, None

        x, _ = lax.scan(body, x, None, length=3)
        return jnp.einsum("bthk,bshk->bhts", x[None, :, None], x[None, :, None])

    found = products(function, jnp.ones((5, 4)), jnp.ones((4, 4)))
    assert Product(1, 5, 4, 4, times=3) in found
    assert sum(product.flops for product in found) == 2 * (3 * 5 * 4 * 4 + 5 * 5 * 4)
