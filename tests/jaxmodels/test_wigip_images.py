"""Phase 2 of wigip: images and captions, and what a model of text keeps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.commands.initial import open_initial, state_initializer
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim, Recipe
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import split, unstack
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import init
from jaxmodels.wigip import images as pictures
from tests.bridge.zips import ZIP, unpacked

wigip = jaxmodels.arch("wigip")
CONFIG = wigip.Config(vocab=20, side=8, dim=16, layers=1, heads=2, images=True)


@pytest.fixture(scope="module")
def model():
    """A model whose weights are large enough that every mistake shows."""
    graphdef, params, rest = split(wigip.Model(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    large = {p: x + 0.2 * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}
    large["images/log_temperature"] = params["images/log_temperature"]
    return graphdef.merge(large, rest)


def pairs(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = {
        "tokens": rng.integers(0, 20, (rows, 12), np.int32),
        "mask": np.ones((rows, 12), np.int32),
        "images": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        "image_id": np.arange(rows, dtype=np.int32),
    }
    return jax.tree.map(jnp.asarray, drawn)


def window(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed).integers(0, 20, (rows, 65), np.int32)
    return {"tokens": jnp.asarray(drawn)}


def test_a_model_of_text_is_what_it_was():
    """Not one parameter more, and the same begin: those of images are drawn last."""
    text = split(wigip.Model(replace(CONFIG, images=False), rngs=nnx.Rngs(0)))[1]
    both = split(wigip.Model(CONFIG, rngs=nnx.Rngs(0)))[1]
    assert not [path for path in text if path.startswith("images/")]
    assert {path for path in both if path not in text} == {
        *(f"images/{name}/{part}" for name in ("colour", "head", "text_pool", "image_pool")
          for part in ("kernel", "bias")),
        "images/log_temperature",
    }  # fmt: skip
    for path, array in text.items():
        np.testing.assert_array_equal(both[path], array)


def test_a_pixel_takes_the_place_of_a_character(model):
    """The convolution over the grid of embedded pixels, against lax's."""
    images = np.random.default_rng(1).random((2, 8, 8, 3), np.float32)
    grid = (images - 0.5) / 0.25 @ model.images.colour.kernel[...] + model.images.colour.bias[...]
    expected = jax.lax.conv_general_dilated(
        grid, model.patch.kernel[...], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = model.convolved(model.images.colour(pictures.patches(model, jnp.asarray(images))))
    np.testing.assert_allclose(found, expected.reshape(2, 4, 16), atol=1e-4)


def test_a_patch_is_predicted_from_those_before_it_and_features_see_all(model):
    images = jnp.asarray(np.random.default_rng(2).random((1, 8, 8, 3), np.float32))
    pixels = pictures.patches(model, images)

    def by_patch(function):
        moved = jax.jacrev(function)(pixels)  # [predicted, 1, patch, pixel, colour]
        return np.abs(moved).sum(axis=(1, 3, 4)) > 0

    predicted = by_patch(lambda x: jnp.abs(pictures.predicted(model, x)[0]).sum(axis=(1, 2)))
    np.testing.assert_array_equal(predicted, np.tri(3, 4, dtype=bool))
    assert by_patch(lambda x: jnp.square(pictures.read(model, x)[0]).sum(axis=1)).all()


def test_drawn_pictures_are_the_predicted_patches(model):
    images = jnp.asarray(np.random.default_rng(3).random((1, 8, 8, 3), np.float32))
    drawn = np.asarray(model.drawn(images))
    np.testing.assert_allclose(drawn[0, :4, :4], images[0, :4, :4], atol=1e-6)
    last = pictures.predicted(model, pictures.patches(model, images))[0, -1]
    expected = np.clip(np.asarray(last) * 0.25 + 0.5, 0, 1).reshape(4, 4, 3)
    np.testing.assert_allclose(drawn[0, 4:, 4:], expected, atol=1e-6)


@pytest.mark.parametrize("objective", ["next_char", "dense"])
def test_captions_are_read_without_their_padding(model, objective):
    _, params, rest = split(model)
    other = split(wigip.Model(replace(CONFIG, objective=objective), rngs=nnx.Rngs(0)))[0]
    model = other.merge(params, rest)
    tokens = jnp.asarray(np.random.default_rng(4).integers(0, 20, (3, 12)))
    alone = model.text_features(tokens)
    padded = jnp.pad(tokens, ((0, 0), (0, 20)), constant_values=7)
    mask = jnp.pad(jnp.ones((3, 12), int), ((0, 0), (0, 20)))
    np.testing.assert_allclose(model.text_features(padded, mask), alone, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(alone, axis=1), 1, atol=1e-6)
    changed = model.text_features(jnp.where(jnp.arange(12) == 11, (tokens + 1) % 20, tokens))
    assert (np.abs(changed - alone).max(axis=1) > 1e-3).all()


def test_text_and_images_together_reach_every_parameter(model):
    graphdef, params, rest = split(model)

    @jax.jit
    @jax.grad
    def gradient(params):
        both = graphdef.merge(params, rest)
        return sum(wigip.loss(both, batch, None)[0] for batch in (window(2), pairs(4)))

    assert all(np.abs(grad).max() > 0 for grad in gradient(params).values())


def test_each_kind_of_batch_has_its_metrics(model):
    names = {"contrastive_loss", "acc_t2i", "acc_i2t", "image_loss", "temperature"}
    value, aux = wigip.loss(model, pairs(4), None)
    assert aux["metrics"].keys() == names
    found = aux["metrics"]
    assert float(value) == pytest.approx(float(found["contrastive_loss"] + found["image_loss"]))
    assert wigip.loss(model, window(2), None)[1]["metrics"].keys() == {"text_loss"}
    graphdef, params, rest = split(model)

    def means(*batches):
        return evaluate(loss_function(wigip, graphdef), params, rest, batches)

    text, of_pairs = means(window(4)), means(pairs(40))
    both = means(window(4), pairs(40))
    loss = (4 * text["loss"] + 40 * of_pairs["loss"]) / 44
    assert both == pytest.approx(text | of_pairs | {"loss": loss}, rel=1e-5)
    cut = [{k: v[i : i + 10] for k, v in pairs(40).items()} for i in range(0, 40, 10)]
    assert means(window(4), *cut) == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "batch", "what"),
    [
        (replace(CONFIG, images=False), pairs(2), "reads no images"),
        (
            CONFIG,
            {"images": pairs(2)["images"], **window(2)},
            "65 tokens, where a caption has",
        ),
        (CONFIG, pairs(2) | {"images": jnp.zeros((2, 8, 12, 3), jnp.uint8)}, "8 × 12 × 3"),
    ],
)
def test_bad_input(config, batch, what):
    with pytest.raises(Problem, match=what) as caught:
        wigip.loss(wigip.Model(config, rngs=nnx.Rngs(0)), batch, None)
    assert caught.value.exit_code == USAGE
    assert caught.value.fix


def test_features_of_a_model_of_text_are_refused():
    model = wigip.Model(replace(CONFIG, images=False), rngs=nnx.Rngs(0))
    with pytest.raises(Problem, match="reads no images"):
        model.text_features(jnp.zeros((1, 4), int))
    with pytest.raises(Problem, match="reads no images"):
        model.image_features(jnp.zeros((1, 8, 8, 3)))


def test_the_commands_refuse_the_wrong_kind(tmp_path, capsys):
    words = ["train", "wigip:tiny", "--out", str(tmp_path / "run"), "--data"]
    for spec in ("shapes", "mix:1*pydoc,1*shapes"):
        assert main([*words, spec]) == USAGE
        told = capsys.readouterr().err
        assert "wigip learns from text, and the data is images with captions" in told
        assert "--model.images" in told
    words[1] = "bitgen:tiny"
    assert main([*words, "mix:1*pydoc,1*shapes"]) == USAGE
    assert (
        "bitgen learns from images with captions, and the data is text" in capsys.readouterr().err
    )


def test_a_zip_has_the_seeds_members_unchanged_and_one_more(model, tmp_path):
    """The seed's reader takes each top-level key by its name."""
    graphdef, params, rest = split(wigip.Model(replace(CONFIG, images=False), rngs=nnx.Rngs(0)))
    own = {path: split(model)[1][path] for path in params}
    members = []
    for name, each in (("both", model), ("text", graphdef.merge(own, rest))):
        bridge.save(each, tmp_path / name)
        bridge.convert(tmp_path / name, tmp_path / f"{name}-zip", to="wigip-zip")
        members.append(unpacked(tmp_path / f"{name}-zip" / "step_0.zip"))
    both, text = members
    assert both.keys() - text.keys() == {"params/Images_0.pkl.gz"}
    assert all(both[name] == content for name, content in text.items())
    back = bridge.load(tmp_path / "both-zip", config={"heads": 2})
    assert back.config == CONFIG
    for path, array in split(model)[1].items():
        np.testing.assert_array_equal(split(back)[1][path], array)


def test_a_published_zip_begins_the_image_phase():
    """All of its parameters are kept, and what pictures need is a new model's."""
    arch, _, config, source = open_initial(str(ZIP), "wigip:tiny-images")
    assert arch == "wigip"
    assert replace(config, images=False, image_weight=1.0) == source.config
    recipe = Recipe(optim=Optim("sgd"))
    fresh = init(wigip, config, recipe, optimiser(recipe.optim, 0.1), make_mesh(""))[1]()
    new = unstack(jax.device_get(fresh.params), wigip.SCANNED)
    params = state_initializer(source, config, with_moments=False)(fresh).params
    params = unstack(jax.device_get(params), wigip.SCANNED)
    for path, tensor in source.tensors.items():
        np.testing.assert_array_equal(params[path], tensor.read(), err_msg=path)
    added = params.keys() - source.tensors.keys()
    assert {path.partition("/")[0] for path in added} == {"images"}
    for path in added:
        np.testing.assert_array_equal(params[path], new[path], err_msg=path)


def test_what_a_batch_of_images_counts(model):
    _, params, rest = split(model)

    def loss(config):
        model = split(wigip.Model(config, rngs=nnx.Rngs(0)))[0].merge(params, rest)
        return wigip.loss(model, pairs(4), None)

    (whole, aux), (part, same) = (loss(replace(CONFIG, image_weight=w)) for w in (1.0, 0.25))
    np.testing.assert_allclose(part, 0.25 * whole, rtol=1e-6)
    assert aux["metrics"] == same["metrics"]
    with pytest.raises(Problem, match="image_weight"):
        replace(CONFIG, image_weight=-1.0)


@pytest.mark.parametrize("objective", ["next_char", "dense"])
def test_the_twin_gives_the_same_features_and_patches(model, tmp_path, objective):
    _, params, rest = split(model)
    config = replace(CONFIG, objective=objective)
    graphdef = split(wigip.Model(config, rngs=nnx.Rngs(0)))[0]
    bridge.save(graphdef.merge(params, rest), tmp_path / "model")
    report = bridge.verify(tmp_path / "model")
    assert report.ok
    module = bridge.torch.load(tmp_path / "model")
    with pytest.raises(ValueError, match="3 × 8 × 8"):
        module.get_image_features(torch.zeros(1, 3, 4, 4))
