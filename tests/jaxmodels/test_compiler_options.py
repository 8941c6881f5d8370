"""Options for XLA: chosen by platform and mesh, set by users, and refused with a message."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import USAGE
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.compiler import compiler_options

WINDOWED = "xla_jf_spmd_threshold_for_windowed_einsum_mib"


def mesh(platform, data):
    devices = np.array([SimpleNamespace(platform=platform)])
    return SimpleNamespace(devices=devices, shape={"data": data, "model": 1})


def test_they_follow_the_platform_and_the_mesh_and_the_recipe():
    assert compiler_options(Recipe(), mesh("cpu", 4)) == {}
    assert compiler_options(Recipe(), mesh("tpu", 1)) == {}
    assert compiler_options(Recipe(), mesh("tpu", 4)) == {WINDOWED: "1000000"}
    recipe = replace(Recipe(), xla=(f"{WINDOWED}=4", "xla_other=a=b"))
    assert compiler_options(recipe, mesh("tpu", 4)) == {WINDOWED: "4", "xla_other": "a=b"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["xla_cpu_enable_fast_min_max"], "NAME=VALUE"),
        (["xla_no_such_option=1"], "xla_no_such_option"),
        (["xla_cpu_enable_fast_min_max=maybe"], "maybe"),
    ],
)
def test_what_the_compiler_does_not_take_is_refused_before_training(tmp_path, capsys, given, said):
    out = tmp_path / "run"
    assert (
        main(["train", "charlm:tiny", "--out", str(out), "--steps", "1", "--xla", *given]) == USAGE
    )
    error = capsys.readouterr().err
    assert said in error
    assert "defect" not in error
    assert not out.exists()
