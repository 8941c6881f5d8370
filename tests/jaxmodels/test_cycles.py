"""What libtpu's compiler expects our layers to cost on a TPU, against plain JAX; none is needed."""

import importlib.util
from dataclasses import replace

import pytest

from jaxmodels.runtime.planning import tpu
from jaxmodels.runtime.planning.cycles import estimated
from jaxmodels.runtime.planning.isolated import run_isolated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]

BATCH, T, DIM, HEADS, HIDDEN, VOCAB = 8, 512, 256, 4, 512, 16_384


@pytest.fixture(autouse=True)
def _described(monkeypatch):
    for name, value in tpu.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def cycles(function, *shapes) -> int:
    """Of the program that libtpu's compiler makes of a function."""
    import jax

    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
    return estimated(lowered.compile().as_text())


def ours() -> int:
    """A block of wikigpt with its loss, and the gradients of both."""
    import jax
    import jax.numpy as jnp

    from jaxmodels import wikigpt
    from jaxmodels.runtime.planning.chips import topology
    from jaxmodels.runtime.planning.plan import Workload, abstract_state
    from jaxmodels.runtime.sharding import make_mesh, with_mesh

    sizes = {"heads": HEADS, "hidden": HIDDEN, "context": T, "gelu": "tanh"}
    config = replace(wikigpt.PRESETS["tiny"], vocab=VOCAB, tokens=VOCAB, dim=DIM, layers=1, **sizes)
    recipe = replace(wikigpt.RECIPES["tiny"], batch=BATCH, accum=1, dtype="bfloat16")
    mesh = make_mesh("", tpu.devices(topology("v5e:1x1")))
    graphdef, state = abstract_state(Workload(wikigpt, config, recipe), mesh)
    at = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    tokens = jax.ShapeDtypeStruct((BATCH, T + 1), jnp.int32)
    shapes = jax.tree.map(
        lambda x: x.update(sharding=at), (state.params, state.model_state, tokens)
    )

    def loss(params, rest, tokens):
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return wikigpt.loss(graphdef.merge(params, rest), {"tokens": tokens}, None)[0]

    return cycles(with_mesh(mesh, jax.value_and_grad(loss)), *shapes)


def plain() -> int:
    """The same as anybody would write it who knows TPUs."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    from jaxmodels.runtime.planning.chips import topology

    width = DIM // HEADS
    at = jax.sharding.SingleDeviceSharding(tpu.devices(topology("v5e:1x1"))[0])
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library.CausalMask((T, T))] * HEADS),
        block_sizes=library.BlockSizes(*[T] * 8),
        head_shards=1,
        q_seq_shards=1,
    )
    shapes = {
        "embed": (VOCAB, DIM),
        "pos": (T, DIM),
        "up": (DIM, HIDDEN),
        "up_bias": (HIDDEN,),
        "down": (HIDDEN, DIM),
        "proj": (HEADS, width, DIM),
        **dict.fromkeys("qkv", (DIM, HEADS, width)),
        **{f"{name}_bias": (HEADS, 1, width) for name in "qkv"},
        **{f"{name}_bias": (DIM,) for name in ("down", "proj")},
        **{f"norm{i}{part}": (DIM,) for i in range(3) for part in ("", "_bias")},
    }

    def norm(x, p, name):
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return (x * p[name] + p[f"{name}_bias"]).astype(jnp.bfloat16)

    def loss(params, tokens):
        p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        x = p["embed"][tokens[:, :-1]].astype(jnp.float32) + p["pos"]
        y = norm(x, p, "norm0")
        q, k, v = (jnp.einsum("btd,dhk->bhtk", y, p[n]) + p[f"{n}_bias"] for n in "qkv")
        y = jax.vmap(kernel)(q * width**-0.5, k, v, None)
        x = x + jnp.einsum("bhtk,hkd->btd", y, p["proj"]) + p["proj_bias"]
        y = jax.nn.gelu(norm(x, p, "norm1") @ p["up"] + p["up_bias"])
        x = norm(x + y @ p["down"] + p["down_bias"], p, "norm2")
        logits = jnp.einsum("btd,vd->btv", x, p["embed"], preferred_element_type=jnp.float32)
        picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - picked)

    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at)
        for name, shape in shapes.items()
    }
    tokens = jax.ShapeDtypeStruct((BATCH, T + 1), jnp.int32, sharding=at)
    return cycles(jax.value_and_grad(loss), params, tokens)


def test_a_block_and_its_loss_cost_less_than_plainly_written():
    mine, others = run_isolated(ours), run_isolated(plain)
    assert others > 1e6  # the compiler tells estimates at all
    # 0.70. With the forms that suit a CPU: heads 0.76, loss 0.74.
    assert mine <= 0.72 * others, f"{mine / 1e6:.2f} and plainly {others / 1e6:.2f} million cycles"
