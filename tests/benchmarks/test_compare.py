"""Comparison of two runs, on records with known times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import changes, latest, significance, text
from benchmarks.records import identity, read
from jaxmodels.errors import CORRUPT, Problem

MACHINE = {"cpu": "x", "cores": 2, "devices": ["cpu: cpu"], "load_before": 0.1}
times = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12)


def record(milliseconds, contestant="jaxmodels", date="2026-01-01", ratios=None, **more):
    return {
        "suite": "step",
        "case": "a:b",
        "contestant": contestant,
        "unit": "ms",
        "median": float(np.median(milliseconds)),
        "times_ms": list(milliseconds),
        "times_as_fast_as": ratios or {},
        "settings": {"batch": 1},
        "machine": MACHINE,
        "versions": {"jax": "1"},
        "date": date,
    } | more


@given(times, st.floats(0.1, 10))
def test_all_times_multiplied_change_by_as_much(milliseconds, factor):
    new = record([factor * one for one in milliseconds], date="2026-01-02")
    (change,) = changes([new], [record(milliseconds)])
    assert change["change"] == pytest.approx(factor - 1, rel=1e-6, abs=1e-6)
    (back,) = changes([record(milliseconds)], [new])
    assert (1 + change["change"]) * (1 + back["change"]) == pytest.approx(1)
    assert change["p"] == pytest.approx(back["p"])


@given(times)
def test_the_same_times_are_no_change(milliseconds):
    (change,) = changes([record(milliseconds)], [record(milliseconds)])
    assert change["change"] == 0
    assert change["p"] == pytest.approx(1, abs=0.2)


def test_significance_of_samples_that_do_not_overlap():
    """The p-value of the test's own table: of 70 ways to divide 4 + 4, two are this extreme."""
    assert significance([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(2 / 70)
    assert significance([1, 2, 3, 4], None) is None


def test_ratios_are_compared_round_by_round():
    """The machine is twice as slow, for both: the ratio is what it was."""
    old = [record([1, 2, 3], ratios={"peer": 3}), record([3, 6, 9], "peer")]
    day = {"date": "2026-01-02"}
    new = [record([2, 4, 6], ratios={"peer": 3}, **day), record([6, 12, 18], "peer", **day)]
    ours, _ = changes(new, old)
    assert ours["change"] == 1
    assert ours["ratios"]["peer"]["change"] == 0
    assert ours["ratios"]["peer"]["p"] == pytest.approx(1)
    assert "times as fast as peer: 3.00 → 3.00 (+0.0%" in text([ours])


def test_records_without_rounds_tell_the_change_only():
    old = record([1, 2, 3])
    del old["times_ms"]
    (change,) = changes([record([2, 4, 6])], [old])
    assert (change["change"], change["p"]) == (1, None)
    assert "2 → 4 ms (+100.0%, rounds of one not recorded)" in text([change])


@pytest.mark.parametrize(
    "other", [{"cpu": "y"}, {"cores": 4}, {"devices": ["gpu: H100"]}], ids=lambda o: next(iter(o))
)
def test_other_machines_are_not_compared(other):
    (change,) = changes([record([1])], [record([1], machine=MACHINE | other)])
    assert not change["comparable"]
    assert "change" not in change
    assert "not comparable, another machine" in text([change])


def test_the_load_of_a_machine_does_not_make_it_another():
    (change,) = changes([record([1])], [record([1], machine=MACHINE | {"load_before": 9})])
    assert change["comparable"]


def test_the_newest_record_of_the_same_machine_counts():
    other = record([9], date="2026-01-03", machine=MACHINE | {"cpu": "y"})
    old = [record([1]), record([2], date="2026-01-02"), other]
    (change,) = changes([record([4])], old)
    assert change["before"] == 2


def test_other_sizes_are_another_thing():
    other = record([1], settings={"batch": 8})
    assert identity(other) != identity(record([1]))
    assert changes([record([1])], [other]) == []
    assert "nothing to compare" in text([])


def test_versions_and_settings_that_differ_are_told():
    new = record([1], versions={"jax": "2"}, settings={"batch": 1, "isolated": True})
    (change,) = changes([new], [record([1])])
    assert change["differs"] == ["jax 1 → 2", "isolated None → True"]
    assert "different: jax 1 → 2" in text([change])


def test_the_newest_of_each_thing():
    records = [record([1]), record([2], "peer"), record([3])]
    assert latest(records) == [records[2], records[1]]


def test_what_is_no_record_is_named(tmp_path):
    file = tmp_path / "step.jsonl"
    file.write_text('{"suite": "step"}\n')
    with pytest.raises(Problem, match="not a record") as caught:
        read(tmp_path)
    assert caught.value.exit_code == CORRUPT
    assert caught.value.where.endswith("step.jsonl:1")
    file.unlink()
    with pytest.raises(Problem, match="no records"):
        read(tmp_path)
