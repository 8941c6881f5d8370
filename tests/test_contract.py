"""The contract of every architecture; add a new one to `contract.ARCHS`."""

from importlib import import_module
from operator import attrgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxmodels
from bridge.core import table, twins
from bridge.core.ops import OPS
from bridge.core.twins import twin
from jaxmodels import architecture, sizes
from jaxmodels.architecture import ModelView
from jaxmodels.commands.list import parameter_count
from jaxmodels.runtime.generate import generate
from jaxmodels.runtime.paths import match, params_of, split, unstack
from tests.bridge.helpers import random_params, write_run
from tests.contract import (
    ARCHS,
    DEAD,
    PAIRS,
    SPECS,
    TOWERS,
    WINDOW,
    after_each,
    archs,
    batch_for,
    call,
    causal,
    images_for,
    learner,
    random_tokens,
    tiny,
    tokens_for,
    towers,
    writers,
)

# Exact parameter counts, from the sizes in the seeds' documents.
COUNTS = {
    # The tower's of width h, and (v + t + 2 m + s² h + 15) d + 6 d² + 2 m + 3 + blocks ·
    # (4 d² + 2 d f + 3 d + f) + (4 d² + 3 d) for each that sees another sequence, and a gate for
    # each of these in the encoders, with width d, hidden f, v tokens, t positions, m slots, and
    # squares of s² patches.
    "bitgen:tiny": 402_053,
    "bitgen:mini": 5_416_261,
    "bitgen:card": 94_702_151,
    "bitgen:edge": 30_260_167,
    # The tower's of width h, and (2 v + t + m + h) d + v + 16 d² + 20 d + 2 + encoder layers ·
    # (4 d² + 2 d f + 9 d + f) + decoder layers · (5 d² + 2 d f + 12 d + f) with width d, hidden f,
    # v tokens, t positions and m slots.
    "bitgen_stage1:tiny": 95_298,
    "bitgen_stage1:card": 100_724_819,
    # vocab · d + layers · (4 d² + 3 d f + 4 d) with width d, hidden f.
    "bwetaf:tiny": 22_784,
    "bwetaf:53m": 53_012_480,
    "bwetaf:130m": 130_649_088,
    "charlm:tiny": 25_344,
    "charlm:notebook": 355_682,
    "charlm:base": 6_444_800,
    # (a + side²) d + layers · (4 d² + 2 d f + 11 d + f) with width d, hidden f, 3 · 14² inputs of a
    # patch and three single tokens in a; SwiGLU has 3 d f + 10 d + 2 f instead of 2 d f and f.
    "dinov2:tiny": 45_056,
    "dinov2:small": 22_056_576,
    "dinov2:base": 86_580_480,
    "dinov2:large": 304_368_640,
    "dinov2:giant": 1_136_480_768,
    "dinov2:tiny-reg": 45_184,
    "dinov2:small-reg": 22_058_112,
    "dinov2:base-reg": 86_583_552,
    "dinov2:large-reg": 304_372_736,
    "dinov2:giant-reg": 1_136_486_912,
    # 2 v d + d + layers · (2 d² + 2 d g k + 3 d f + 2 d) with width d, hidden f, g heads of keys of
    # width k. The second is that of the published 7B.
    "llama:tiny": 22_688,
    "llama:7b": 6_738_415_616,
    # v a + (a² + n + 3) d + layers · (12 d² + 13 d) + (d + 1) v with vocab v, width d, and n
    # patches of a characters.
    "wigip:tiny": 122_752,
    # With 4 a + (d + 1) 3 a + 2 (d² + d) + 1 for images.
    "wigip:tiny-images": 187_313,
    "wigip:125m": 85_761_536,
    "wigip:1.7b": 1_801_367_552,
    # (vocab + context + 2) · d + layers · (4 d² + 2 d f + 9 d + f) with width d, hidden f.
    "wikigpt:tiny": 20_224,
    "wikigpt:base": 30_062_592,
    # nanoGPT prints them without positions: 10.65 and 0.80 million.
    "wikigpt:shakespeare": 65 * 384 + 256 * 384 + 6 * (12 * 384**2 + 2 * 384) + 384,
    "wikigpt:shakespeare-cpu": 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128,
    "wikigpt:gpt2-124m": 124_439_808,
}


pytestmark = pytest.mark.usefixtures("examples")


@archs
def test_exports(arch):
    """All that the interface requires is there, and nothing is misspelt."""
    package, side = (import_module(x) for x in (jaxmodels.arch(arch).module, twin(arch).module))
    assert architecture.complaints(package) == []
    assert twins.complaints(side) == []
    for name in package.__all__:  # lazy exports can be loaded
        assert getattr(package, name) is not None
    assert "tiny" in package.PRESETS


@pytest.mark.slow
@pytest.mark.parametrize("preset", SPECS)
def test_parameter_count(preset):
    arch, _, config = jaxmodels.preset(preset)
    assert parameter_count(arch, config) == COUNTS[preset]


@pytest.mark.slow
@archs
def test_the_same_seed_gives_the_same_model(arch):
    one, two, other = (
        {path: np.asarray(x) for path, x in params_of(jaxmodels.create(f"{arch}:tiny", s)).items()}
        for s in (3, 3, 4)
    )
    assert all((one[path] == two[path]).all() for path in one)
    assert any((one[path] != other[path]).any() for path in one)


@pytest.mark.slow
@writers
def test_logits(arch):
    model, tokens = tiny(arch), tokens_for(arch)
    logits, cache = call(model, tokens)
    places = tokens.shape[:1] if arch in WINDOW else tokens.shape
    assert logits.shape == (*places, model.config.vocab)
    assert logits.dtype == jnp.float32
    assert cache is None
    assert jnp.isfinite(logits).all()
    alone, _ = call(model, tokens[1:])
    np.testing.assert_allclose(logits[1:], alone, atol=1e-5)


@pytest.mark.slow
@towers
def test_features(arch):
    model, images = tiny(arch), images_for(arch)
    out = call(model, images)
    cfg = model.config
    assert out.shape == (2, 1 + cfg.registers + cfg.side**2, cfg.dim)
    assert out.dtype == jnp.float32
    assert jnp.isfinite(out).all()
    np.testing.assert_allclose(out[1:], call(model, images[1:]), atol=1e-5)


@pytest.mark.slow
@writers
def test_causality_by_gradient(arch):
    """The logits at t depend on the embeddings of tokens 0 to t, and on no later one."""
    graphdef, params, rest = split(causal(arch))
    length = 6
    tokens = jnp.arange(length)[None]  # every position has an embedding row of its own

    @jax.jit
    @jax.grad
    def gradient(embedding, t):
        model = graphdef.merge(params | {"embed/embedding": embedding}, rest)
        # A tied head reads the embedding too: of the row of a token that does not occur.
        return jnp.abs(after_each(model, tokens)[0, t, length:]).sum()

    for t in range(length):
        moved = jnp.abs(gradient(params["embed/embedding"], t)).sum(axis=1)[:length]
        assert (moved[: t + 1] > 0).all()
        assert (moved[t + 1 :] == 0).all()


@pytest.mark.slow
@writers
def test_prefill_and_decode_equal_the_full_forward(arch):
    model, tokens = causal(arch), random_tokens(arch, 2, 12)
    full = after_each(model, tokens)
    logits, cache = call(model, tokens[:, :5], model.init_cache(2))
    pieces = [logits]
    for t in range(5, tokens.shape[1]):
        logits, cache = call(model, tokens[:, t : t + 1], cache)
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=1e-5)


@pytest.mark.slow
@writers
def test_greedy_generation_is_the_argmax_of_the_full_forward(arch):
    from jaxmodels.layers.sampling import Sampling

    model, tokens = causal(arch), random_tokens(arch, 8, 4)  # eight: `decoding.NO_YNNPACK_ROWS`
    drawn = np.concatenate(
        list(generate(model, np.asarray(tokens), 12, Sampling(None), chunk=5)), axis=1
    )
    logits = after_each(model, jnp.concatenate([tokens, drawn[:, :-1]], axis=1))
    np.testing.assert_array_equal(drawn, logits[:, 3:].argmax(-1))


@pytest.mark.slow
@writers
def test_pieces_and_a_growing_cache_change_nothing(arch):
    from jaxmodels.layers.sampling import Sampling

    model = causal(arch, context=200)  # the cache grows from 64 slots
    prompt = np.asarray(random_tokens(arch, 2, 40))
    one = np.concatenate(list(generate(model, prompt, 150, Sampling(1.0), chunk=150)), axis=1)
    many = np.concatenate(list(generate(model, prompt, 150, Sampling(1.0), chunk=16)), axis=1)
    np.testing.assert_array_equal(one, many)
    assert one.shape == (2, 150)


@pytest.mark.slow
@writers
def test_generation_goes_on_past_the_context(arch):
    """Pieces change nothing there either; without relative positions, it is the plain rule."""
    from jaxmodels.layers.sampling import Sampling

    graphdef, params, rest = split(causal(arch, seed=2, context=9))
    rng = np.random.default_rng(2)  # fresh weights hardly look back: every token is the last one
    model = graphdef.merge({p: x + 0.3 * rng.normal(size=x.shape) for p, x in params.items()}, rest)
    prompt, context = random_tokens(arch, 3, 5), model.config.context

    def drawn(rows, **settings):
        pieces = list(generate(model, np.asarray(prompt)[:rows], 20, **settings))
        assert all(piece.shape[1] <= settings.get("chunk", 32) for piece in pieces)
        return np.concatenate(pieces, axis=1)

    sampled = drawn(3, sampling=Sampling(1.0), chunk=32)
    assert sampled.shape == (3, 20)
    np.testing.assert_array_equal(drawn(3, sampling=Sampling(1.0), chunk=3), sampled)
    np.testing.assert_array_equal(drawn(1, sampling=Sampling(1.0), chunk=3), sampled[:1])
    if not ModelView(model).relative:
        window, expected = prompt, []
        for _ in range(20):
            if window.shape[1] >= context:
                window = window[:, -(context // 2) :]
            expected.append(after_each(model, window)[:, -1:].argmax(-1))
            window = jnp.concatenate([window, expected[-1]], axis=1)
        found = drawn(3, sampling=Sampling(None))
        np.testing.assert_array_equal(found, jnp.concatenate(expected, axis=1))


@pytest.mark.slow
@archs
def test_tables_are_total(arch):
    from jaxmodels.runtime.paths import pattern

    package = jaxmodels.arch(arch)
    for preset in package.PRESETS.values():
        held = params_of(sizes.outline(package, preset))
        for path, leaf in held.items():
            assert len(match(package.SHARDING, path)) <= len(leaf.shape)
        for path in sizes.shapes(arch, preset):
            for rows in (getattr(package, name) for name in ("WEIGHTS", "SAVED", "UPSTREAM")):
                found = [row for row in rows if pattern(row[0]).fullmatch(path)]
                assert not rows or len(found) == 1, (path, found)


@pytest.mark.slow
@archs
def test_sizes_follow_from_the_shapes(arch):
    package = jaxmodels.arch(arch)
    for preset in package.PRESETS.values():
        shapes = {path: leaf.shape for path, leaf in sizes.shapes(arch, preset).items()}
        known, assumed = package.sizes(shapes)
        assert {name: attrgetter(name)(preset) for name in known} == known
        assert not set(known) & set(assumed)


@pytest.fixture(scope="module", params=ARCHS)
def converted(request, tmp_path_factory, examples) -> tuple[str, Path, dict[str, np.ndarray]]:
    """(architecture, model directory, the random parameters that it was made from)."""
    folder = tmp_path_factory.mktemp("converted")
    text = request.param not in TOWERS
    run = write_run(folder / "run", {7: None}, vocab=text, spec=f"{request.param}:smallest")
    bridge.convert(run, folder / "model", verify="logits")
    return request.param, folder / "model", random_params(f"{request.param}:smallest", seed=7)


@pytest.mark.slow
def test_the_way_to_pytorch_and_back_is_bit_exact(converted):
    arch, folder, params = converted
    back = params_of(bridge.load(folder))
    assert back.keys() == params.keys()
    for path, array in params.items():
        assert back[path].dtype == array.dtype
        np.testing.assert_array_equal(back[path], array)
    module = bridge.torch.load(folder)
    layers = unstack(params, jaxmodels.arch(arch).SCANNED)
    for pair in table.pairs(jaxmodels.arch(arch).WEIGHTS, layers):
        tensor, ours = module.state_dict()[pair.theirs].numpy(), layers[pair.ours]
        np.testing.assert_array_equal(OPS[pair.op].inverse(tensor).reshape(ours.shape), ours)


@pytest.mark.slow
@pytest.mark.parametrize("converted", [arch for arch in ARCHS if arch not in PAIRS], indirect=True)
def test_the_twin_gives_the_same_logits_and_gradients(converted):
    arch, folder, _ = converted
    package, model, module = learner(arch), bridge.load(folder), bridge.torch.load(folder)
    batch = batch_for(arch, batch=3)
    ours, theirs, theirs_loss = outputs_on_both_sides(arch, model, module, batch)
    assert np.abs(ours - theirs.detach().numpy()).max() <= 1e-5
    graphdef, params, rest = split(model)

    def loss(p):
        return package.loss(graphdef.merge(p, rest), batch, None)[0]

    value, ours = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(theirs_loss.item(), abs=1e-5)
    theirs_loss.backward()
    theirs = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    ours = unstack(ours, jaxmodels.arch(arch).SCANNED)
    live = [path for path in ours if path not in DEAD.get(arch, ())]
    pairs = table.pairs(jaxmodels.arch(arch).WEIGHTS, live)
    assert len(pairs) == len(theirs)
    for pair in pairs:
        gradient = OPS[pair.op].inverse(theirs[pair.theirs]).reshape(ours[pair.ours].shape)
        assert np.abs(gradient - ours[pair.ours]).max() <= 1e-5, pair.ours


def outputs_on_both_sides(arch, model, module, batch):
    """Ours, the twin's, and the twin's loss."""
    import torch

    if arch in TOWERS:
        images, targets = (np.array(batch[name]) for name in ("images", "targets"))
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        theirs = module(pixel_values=pixels).last_hidden_state
        return (
            call(model, batch["images"]),
            theirs,
            (theirs - torch.from_numpy(targets)).square().mean(),
        )
    tokens = batch["tokens"]
    ids = torch.tensor(np.asarray(tokens)).long()
    if arch in WINDOW:
        tokens, out = tokens[:, :-1], module(ids[:, :-1], labels=ids[:, -1])
    else:
        out = module(ids, labels=ids)
    return call(model, tokens)[0], out.logits, out.loss
