"""The compiler's estimate of a step: read from its text, summed, and reported by `plan`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxmodels.commands.plan_report import largest, show
from jaxmodels.runtime.planning import cycles, flops, hlo
from jaxmodels.runtime.planning.chips import CHIPS, topology
from jaxmodels.runtime.planning.report import expected, report
from tests.jaxmodels.planning import compiled_of, job_of

# In the form in which libtpu's compiler writes a module; numbers of ours.
TEXT = Path(__file__).with_name("step.hlo").read_text()


def test_operations_are_summed_with_their_loops_and_lead_to_the_model():
    assert cycles.estimated(TEXT) == 6250
    assert cycles.operations(TEXT) == [
        (6000, 6, "fusion", "bf16[8,8]", "charlm/model.py:62 > layers/linear.py:40"),
        (200, 1, "fusion", "f32[8]", "runtime/step.py:7"),
        (50, 1, "copy", "bf16[8,8]", "charlm/model.py:62"),
    ]
    assert cycles.operations("HloModule empty") == []


def test_of_collectives_it_is_known_what_runs_beside_them():
    found = {(c.kind, c.count, c.beside) for c in hlo.collectives(TEXT, 4)}
    assert found == {("all-gather", 6, 1000), ("all-reduce", 1, 250), ("all-reduce", 1, 0)}


def test_expected_time_is_that_of_operations_kernels_and_exposed_collectives():
    slice_ = topology("v5e:2x2")
    collectives = hlo.collectives(TEXT, 4)
    operations = cycles.operations(TEXT)
    found = expected(compiled_of(1, collectives, 1, 4 * 197 * 10**9, operations), slice_)
    assert found["operations"] == pytest.approx(6250 / 1.5e9)
    assert found["kernels"] == pytest.approx(1e-3)
    seconds = {c.beside: c.sent / slice_.interconnect for c in collectives}
    assert seconds[1000] < 1000 / 1.5e9  # hidden
    assert found["exposed_collectives"] == pytest.approx(
        seconds[0] + max(0, seconds[250] - 250 / 1.5e9)
    )
    assert expected(compiled_of(), slice_) == {}


def test_the_report_tells_it_as_an_estimate_and_lists_the_operations(capsys):
    slice_, job = topology("v5e:1x1"), job_of("charlm:tiny")
    rows = [cycles.Operation(3 * 10**9, 4, "fusion", "bf16[8]", "charlm/model.py:1")]
    rows += [cycles.Operation(10**9, 1, "copy", "f32[8]", "")]
    compiled = compiled_of(operations=rows)
    found = report(job, compiled, slice_)
    assert found["expected_step_seconds"] == pytest.approx(4 / 1.5)
    assert found["expected_mfu"] < found["mfu_bound"]
    assert found["roofline_step_seconds"] <= found["expected_step_seconds"]
    said = {"name": "charlm:tiny", "topology": "v5e:1x1", "devices": 1, "flags": "", "dtype": ""}
    found |= {"steps": 10, "hours_at_least": 0.1, "operations": largest(compiled.operations, 1.5e9)}
    show(said | found)
    out = capsys.readouterr().out
    assert "not measured: 2.67 s a step" in out
    assert " 75.0%     4 fusion" in out


def test_products_in_kernels_are_those_of_the_platform_and_padded():
    from jax.experimental import pallas

    def kernel(x, y, out):
        out[...] = jnp.dot(x[...], y[...])

    def fused(x, y):
        shape = jax.ShapeDtypeStruct((128, 256), jnp.float32)
        return pallas.pallas_call(kernel, shape, grid=(3,), interpret=True)(x, y)

    def chosen(x, y):
        return jax.lax.platform_dependent(x, y, tpu=fused, default=jnp.dot)

    traced = jax.make_jaxpr(chosen)(jnp.ones((128, 64)), jnp.ones((64, 256)))
    (one,) = flops.in_kernels(traced, "tpu")
    assert one.flops == 3 * 2 * 128 * 64 * 256
    assert one.padded == 2 * one.flops
    assert flops.in_kernels(traced, "cpu") == []


@pytest.mark.parametrize("name", CHIPS)
def test_a_clock_and_whole_matrix_units_give_the_peak_rate(name):
    chip = CHIPS[name]
    units = chip.flops / (2 * 128 * 128 * chip.clock)
    assert units == pytest.approx(round(units), rel=0.01)
