"""The plain forms do the work of our models: the same products, and they train."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels
from benchmarks import plain, plan
from jaxmodels.errors import Problem
from jaxmodels.runtime.planning import flops
from jaxmodels.runtime.planning.cycles import Operation
from jaxmodels.runtime.planning.plan import Workload, _step
from jaxmodels.runtime.sharding import make_mesh
from tests.benchmarks.test_planned import COMPILED, compiler

__all__ = ["compiler"]


@pytest.fixture(autouse=True)
def _dense(monkeypatch):
    """Attention without a kernel, which a CPU lacks."""

    def attention(q, k, v, causal):
        scores = jnp.einsum("bhtk,bhsk->bhts", q, k) * q.shape[-1] ** -0.5
        seen = np.tri(q.shape[2], dtype=bool) if causal else True
        return jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(jnp.where(seen, scores, -1e9)), v)

    monkeypatch.setattr(plain, "attention", attention)


def work(run, *arguments):
    return flops.total(flops.of_jaxpr(jax.make_jaxpr(run)(*arguments)))


@pytest.mark.parametrize("arch", [arch for arch in plain.ARCHS if arch != "dinov2"])
def test_the_products_of_a_step_are_ours(arch):
    package = jaxmodels.learner(arch)
    config, recipe = package.PRESETS["tiny"], package.RECIPES["tiny"]
    recipe = replace(recipe, batch=4, accum=1, slices=1, dtype="bfloat16")
    step, state, batch = _step(Workload(package, config, recipe), make_mesh("", jax.devices()))
    ours = flops.total(flops.of_jaxpr(step.trace(state, batch).jaxpr))
    step = plain.train_step(arch, config, 4)
    assert work(step.run, *step.arguments) == pytest.approx(ours, rel=0.05)


def test_the_products_of_features_are_counted():
    config = jaxmodels.arch("dinov2").PRESETS["tiny"]
    made = plain.features("dinov2", config, 4)
    assert work(made.run, *made.arguments) == plain.feature_flops(config, 4)
    assert made.run(*jax.tree.map(zeros, made.arguments)).shape == (4, 17, config.dim)


def zeros(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype)


def test_a_plain_model_learns():
    config = jaxmodels.arch("charlm").PRESETS["tiny"]
    made = plain.train_step("charlm", config, 4)
    rng, step = np.random.default_rng(0), jax.jit(made.run)
    params, state = (jax.tree.map(zeros, each) for each in made.arguments[:2])
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), params)
    tokens = jnp.asarray(np.tile(np.arange(config.context + 1) % 7, (4, 1)), jnp.int32)
    losses = []
    for _ in range(40):
        params, state, value = step(params, state, tokens, jnp.zeros(4, jnp.uint32))
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1


def test_others_have_no_plain_form():
    with pytest.raises(Problem, match="bitgen has no plain form"):
        plain.shape_of("bitgen", None)


def test_bench_plan_records_the_ratio(tmp_path, capsys, compiler):
    row = Operation(50, 1, "fusion", "", "")
    alone = replace(COMPILED, operations=[row], collectives=[])
    compiler.setattr(plan.tpu, "compile_isolated", lambda *_: alone)
    compiler.setattr(plan, "run_isolated", lambda *_: 75)
    words = ["--preset", "charlm:tiny", "--topology", "v5e:1x1", "--batch", "16"]
    (record,) = plan.main([*words, "--out", str(tmp_path)])
    assert (record["cycles"], record["plain_cycles"], record["to_plain"]) == (50, 75, 1.5)
    assert "1.50 × plain JAX" in capsys.readouterr().out
    (record,) = plan.main([*words[:2], "--topology", "v5e:2x2", "--out", str(tmp_path)])
    assert "to_plain" not in record


def test_features_of_a_tower_are_a_case(tmp_path, capsys, compiler):
    compiler.setattr(plan, "run_isolated", lambda *words: 2_000_000 if words[-1] else 3_000_000)
    words = ["--preset", "dinov2:base", "--topology", "v5e:1x1", "--batch", "32"]
    (record,) = plan.main([*words, "--out", str(tmp_path)])
    assert record["to_plain"] == 1.5
    assert "1.50 × plain JAX" in capsys.readouterr().out
