"""jaxmodels plan with XLA's compiler for GPUs, where JAX's CUDA plugin is installed; no GPU is
needed."""

import importlib.util
import json

import pytest

from jaxmodels.__main__ import main
from jaxmodels.runtime.planning import gpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(importlib.util.find_spec, gpu.PLUGINS)),
        reason="JAX's CUDA plugin is not installed: pip install 'jaxmodels[plan-gpu]'",
    ),
]


def plan(capsys, *argv):
    code = main(["plan", "wikigpt:tiny", "--dtype", "bfloat16", "--json", *argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


def test_a_step_compiles_for_h100s_of_two_hosts(capsys):
    argv = ("--topology", "h100:2x2", "--mesh", "data=2,model=2", "--batch", "8", "--accum", "1")
    result, err = plan(capsys, *argv, "--operations")
    assert result["fits"]
    assert result["memory"]["parameters"] > 0
    assert result["kernels"]["cuDNN attention"] == 2  # layers
    assert result["kernels"]["cuDNN attention, backward"] == 2
    assert result["kernels"]["cuBLAS product"] > 10
    assert result["collectives"]["all-reduce"]["bytes"] > 0
    assert result["roofline"]["interconnect"] > 0
    assert result["expected_step_seconds"] > result["roofline_step_seconds"]
    assert any(row["source"].startswith("wikigpt/model.py:") for row in result["operations"])
    assert err.count("\n") == 1  # the compiler's warnings are kept away


def test_what_the_compiler_has_no_times_for_is_bounded(capsys):
    result, _ = plan(capsys, "--topology", "a100-40g:1", "--batch", "8", "--accum", "1")
    assert result["kernels"]["cuDNN attention"] == 2
    assert result["roofline_step_seconds"] > 0
    assert "expected" not in result
