"""dinov2 against the published code and transformers.

`golden/dinov2` and `golden/dinov2_reg` are what both computed, with random weights of their own, of
one image in three sizes. The weights lie in shards, to keep files small: `hf` as transformers
writes them, `fb` under the published code's names, from which its `.pth` is made anew here.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
import jaxmodels
from bridge.core import table
from bridge.core.ops import OPS
from bridge.storage.safetensors_reader import read_sharded
from jaxmodels.dinov2 import PRESETS, WEIGHTS, Config, Model
from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.paths import split

SIZES = ("70x70", "84x98", "42x56")
both = pytest.mark.parametrize("name", ["dinov2", "dinov2_reg"])


@pytest.fixture
def pth(golden, tmp_path):
    """(fixture) → the `.pth` file that it was."""

    def write(name: str) -> Path:
        index = golden / name / "fb" / "model.safetensors.index.json"
        state = {n: torch.from_numpy(t.read()) for n, t in read_sharded(index).items()}
        torch.save(state, tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    return write


def pixels(images: np.ndarray) -> jnp.ndarray:
    """[b, 3, h, w] → [b, h, w, 3]."""
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.mark.slow
@both
def test_the_published_code_s_outputs(golden, pth, name):
    model = bridge.load(pth(name), config={"heads": 4})
    assert model.config.interpolation == ("antialias" if "reg" in name else "scale_offset")
    with np.load(golden / name / "fb_io.npz") as io:
        for size in SIZES:
            parts = io[f"cls_{size}"][:, None], io[f"reg_{size}"], io[f"patch_{size}"]
            expected = np.concatenate(parts, axis=1)
            assert np.abs(model(pixels(io[f"x_{size}"])) - expected).max() <= 5e-5


@pytest.mark.slow
@both
def test_transformers_outputs(golden, name):
    model = bridge.load(golden / name / "hf")
    assert model.config.heads == 4
    assert model.config.interpolation == ("antialias" if "reg" in name else "size")
    with np.load(golden / name / "hf_io.npz") as io:
        for size in SIZES:
            out = model(pixels(io[f"x_{size}"]))
            assert np.abs(out - io[f"last_{size}"]).max() <= 5e-5


def theirs_and_ours(mlp: str, registers: int):
    """transformers' module with random weights, large enough to show mistakes, and our model."""
    from bridge.torch.dinov2 import build
    from bridge.torch.dinov2 import unlike as differs

    hidden = 88 if mlp == "swiglu" else 128
    interpolation = "antialias" if registers else "size"
    cfg = Config(32, 2, 4, mlp, hidden, 14, 70, registers, interpolation)
    assert not differs(cfg)
    torch.manual_seed(0)
    module = build(cfg).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    graphdef, params, rest = split(Model(cfg, rngs=nnx.Rngs(0)))
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    pairs = table.pairs(WEIGHTS, params)
    ours = {pair.ours: jnp.asarray(OPS[pair.op].inverse(state.pop(pair.theirs))) for pair in pairs}
    assert not state
    assert {p: a.shape for p, a in ours.items()} == {p: a.shape for p, a in params.items()}
    return module, lambda params: graphdef.merge(params, rest), ours, pairs


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_classes_forward_and_gradients(mlp, registers):
    module, model, params, pairs = theirs_and_ours(mlp, registers)
    rng = np.random.default_rng(0)
    for height, width in ((98, 42), (56, 84)):
        images = rng.normal(size=(2, 3, height, width)).astype(np.float32)
        target = rng.normal(size=(1, 1, 32)).astype(np.float32)

        def loss(params, images=images, target=target):
            out = model(params)(pixels(images))
            return jnp.square(out - target).mean(), out

        module.zero_grad()
        theirs = module(pixel_values=torch.from_numpy(images)).last_hidden_state
        (theirs - torch.from_numpy(target)).square().mean().backward()
        (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        assert np.abs(ours - theirs.detach().numpy()).max() <= 5e-5
        found = dict(module.named_parameters())
        for pair in pairs:
            gradient = found[pair.theirs].grad
            if gradient is None:
                assert pair.ours == "mask"
                assert not gradients["mask"].any()
                continue
            expected = OPS[pair.op].inverse(gradient.numpy())
            scale = max(1.0, np.abs(expected).max())
            assert np.abs(gradients[pair.ours] - expected).max() <= 5e-5 * scale, pair.ours


@pytest.mark.parametrize("interpolation", ["scale_offset", "size", "antialias"])
def test_the_native_grid_is_read_as_it_is(interpolation):
    cfg = replace(PRESETS["tiny"], interpolation=interpolation)
    model = Model(cfg, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model.positions(4, 4), model.pos[1:])
    turned = model.positions(2, 8)  # as many patches, and another shape: that is not the grid
    assert turned.shape == (16, 32)
    assert np.abs(turned - model.pos[1:]).max() > 1e-3


@pytest.mark.slow
def test_interpolations_differ():
    outputs = []
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 42, 42, 3)), jnp.float32)
    for interpolation in ("scale_offset", "size", "antialias"):
        cfg = replace(PRESETS["tiny"], interpolation=interpolation)
        model = Model(cfg, rngs=nnx.Rngs(0))
        model.pos[...] = 50 * model.pos[...]
        outputs.append(model(images))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(outputs[a] - outputs[b]).max() > 1e-2


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((55, 56), "42 × 56"),
        ((56, 57), "56 × 56"),
        ((13, 14), "14 × 14"),
        ((0, 14), "14 × 14"),
    ],
)
def test_a_size_that_patches_do_not_fill_is_refused(size, near):
    with pytest.raises(Problem, match="do not fill an image") as caught:
        jaxmodels.create("dinov2:tiny")(jnp.zeros((1, *size, 3)))
    assert caught.value.exit_code == USAGE
    assert near in caught.value.fix


@pytest.mark.parametrize(
    "change", [{"heads": 5}, {"image_size": 57}, {"registers": -1}, {"dim": 0}, {"patch": 0}]
)
def test_sizes_that_make_no_model(change):
    with pytest.raises(Problem) as caught:
        replace(PRESETS["tiny"], **change)
    assert caught.value.exit_code == USAGE


@pytest.mark.slow
def test_registers_and_layer_scale_begin_as_published():
    model = jaxmodels.create("dinov2:tiny-reg")
    assert (model.blocks[0].ls1[...] == 1).all()
    assert (model.mask[...] == 0).all()
    assert 0 < np.abs(model.registers[...]).max() < 1e-5
    assert model(jnp.zeros((1, 28, 42, 3))).shape == (1, 1 + 4 + 6, 32)


@pytest.mark.slow
def test_bfloat16_is_near(golden):
    exact, rounded = (bridge.load(golden / "dinov2" / "hf", dtype=d) for d in (None, "bfloat16"))
    with np.load(golden / "dinov2" / "hf_io.npz") as io:
        images = pixels(io["x_84x98"])
    outputs = exact(images), rounded(images)
    assert outputs[1].dtype == jnp.float32
    error = np.abs(outputs[0] - outputs[1])
    assert 0 < error.mean() < 0.02


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_what_needs_a_loss_says_what_to_take_instead(capsys, tmp_path, verb):
    from tests.bridge.helpers import command

    code, out, err = command(capsys, verb, "dinov2:tiny", "--out", tmp_path / "run")
    assert (code, out) == (USAGE, "")
    assert "a part of bitgen" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["generate", "eval"])
def test_what_needs_text_says_so_too(capsys, golden, verb):
    from tests.bridge.helpers import command

    code, out, err = command(capsys, verb, golden / "dinov2" / "hf")
    assert (code, out) == (USAGE, "")
    assert "a part of bitgen" in err


@pytest.mark.slow
def test_list_shows_it(capsys):
    from tests.bridge.helpers import command

    code, out, _ = command(capsys, "list")
    assert code == 0
    assert "dinov2:giant-reg          1,136,486,912 parameters\n" in out
    code, row, _ = command(capsys, "list", "dinov2:small", "--json")
    assert (code, row["parameters"], row["context"]) == (0, 22_056_576, None)
