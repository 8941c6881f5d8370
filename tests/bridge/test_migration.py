"""A run that starts from another architecture: what fits is taken, the rest reported."""

from dataclasses import replace

import numpy as np
import pytest

import jaxmodels
from bridge.checkpoint import transfer
from bridge.checkpoint.opening import open_checkpoint
from jaxmodels.commands.initial import open_initial
from jaxmodels.errors import Problem
from jaxmodels.sizes import parameter_shapes
from tests.bridge.helpers import GOLDEN, random_params, write_run

bitgen = jaxmodels.arch("bitgen")

TOWER = GOLDEN.parent / "dinov2" / "hf"

# Sizes of bitgen:tiny that Stage 1's tiny preset fits.
LIKE = {
    "dim": 32,
    "heads": 2,
    "merge": 1,
    "image_size": 28,
    "context": 32,
    "dinov2": jaxmodels.arch("bitgen_stage1").PRESETS["tiny"].dinov2,
}


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    return write_run(
        tmp_path_factory.mktemp("stage1") / "run", {3: None}, spec="bitgen_stage1:tiny"
    )


@pytest.mark.slow
def test_what_fits_is_carried(stage1):
    source = open_checkpoint(stage1)
    config = replace(bitgen.PRESETS["tiny"], vocab=source.config.vocab, **LIKE)
    shapes = parameter_shapes("bitgen", config)
    tensors, notes = transfer.carried(bitgen, source, shapes)
    params = random_params("bitgen_stage1:tiny", seed=3)
    names = {path: path for path in shapes if path.startswith("vision/")}
    names |= {"embed/embedding": "embed/embedding", "pos/embedding": "pos/embedding"}
    names |= {f"project/{name}": f"fusion/project/{name}" for name in ("kernel", "bias")}
    names["temperature"] = "fusion/temperature"
    assert set(tensors) == set(names)
    for ours, theirs in names.items():
        np.testing.assert_array_equal(tensors[ours].read(), params[theirs])
    assert "left there: blocks, decoder, fusion, memory, norm" in notes
    assert any(note.startswith("new here: decoder, image") for note in notes)


@pytest.mark.slow
def test_what_has_another_shape_is_left_and_told(stage1):
    source = open_checkpoint(stage1)
    config = replace(bitgen.PRESETS["tiny"], vocab=source.config.vocab, **LIKE | {"context": 16})
    tensors, notes = transfer.carried(bitgen, source, parameter_shapes("bitgen", config))
    assert "pos/embedding" not in tensors
    assert "pos/embedding is (16, 32) here, (32, 32) there" in notes


@pytest.mark.slow
def test_a_model_that_nothing_fits_is_refused(stage1):
    config = replace(bitgen.PRESETS["card"], vocab=9)
    shapes = parameter_shapes("bitgen", config) | {"temperature": (1,)}
    with pytest.raises(Problem) as caught:
        transfer.carried(bitgen, open_checkpoint(stage1), shapes)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("arch", ["bitgen", "bitgen_stage1"])
def test_a_published_tower_is_carried_whole(arch):
    """Its Config comes along: sizes, and how positions are interpolated."""
    _, _, config, source = open_initial(str(TOWER), f"{arch}:tiny")
    assert config.dinov2 == source.config != jaxmodels.preset(f"{arch}:tiny")[2].dinov2
    assert config.vocab == jaxmodels.preset(f"{arch}:tiny")[2].vocab
    tensors, notes = transfer.carried(jaxmodels.arch(arch), source, parameter_shapes(arch, config))
    assert tensors.keys() == {f"vision/{path}" for path in source.tensors}
    assert notes[1] == "left there: nothing"
    for path, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensors[f"vision/{path}"].read(), tensor.read())
