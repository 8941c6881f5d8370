"""jaxmodels plan with libtpu's compiler, wherever libtpu can be imported; no TPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import jaxmodels
from jaxmodels.runtime.planning import tpu
from tests.contract import our_writers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture(autouse=True)
def _described(monkeypatch):
    for name, value in tpu.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@our_writers
def test_the_step_of_every_architecture_compiles_for_a_slice(arch):
    package = jaxmodels.arch(arch)
    recipe = replace(
        package.RECIPES["tiny"], batch=8, accum=1, dtype="bfloat16", mesh="data=2,model=2"
    )
    compiled = tpu.compile_isolated(package.module, package.PRESETS["tiny"], recipe, "v5e:2x2")
    assert compiled.flops > 0
    assert compiled.memory["parameters"] > 0
    assert {one.kind for one in compiled.collectives} & {"all-gather", "all-reduce"}
    assert {one.group for one in compiled.collectives} >= {2}
    assert any(row.source.startswith(f"{arch}/model.py:") for row in compiled.operations)


@pytest.mark.slow
def test_the_verb_says_that_it_fits_and_that_it_does_not():
    def plan(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jaxmodels", "plan", "charlm:tiny", "--json", *argv],
            env=os.environ,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )

    done = plan("--topology", "v4:2x2x1", "--batch", "64")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["fits"], result["devices"]) == (True, 4)  # both cores of a v4 are one device
    assert done.stderr.count("\n") == 1  # libtpu's warnings are kept away

    done = plan("--topology", "v5e:1x1", "--batch", "1048576", "--minutes", "0")
    assert done.returncode == 7, done.stderr
    result = json.loads(done.stdout)
    assert result["hbm_per_device_bytes"] > result["hbm_limit_bytes"]
    assert result["nearest"] is None
