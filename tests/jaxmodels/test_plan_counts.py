"""What jaxmodels plan counts: operations, collectives, memory, times; and chips."""

import json

import jax
import jax.numpy as jnp
import pytest

import jaxmodels
from jaxmodels import sizes
from jaxmodels.runtime.planning import flops, hlo
from jaxmodels.runtime.planning.chips import CHIPS, GIB, topology
from jaxmodels.runtime.planning.plan import Workload, useful_flops
from jaxmodels.runtime.planning.plan import _needed as needed
from jaxmodels.runtime.planning.report import report, roofline
from tests import children
from tests.children import printed
from tests.jaxmodels.planning import CONTRACT, compiled_of, job_of


def closed_form(job: Workload) -> int:
    """6 operations for each weight of a matrix and each token, and those of attention."""
    shapes = sizes.shapes(job.package.name, job.config)
    tied = "head/kernel" not in shapes
    matrices = sum(
        leaf.size
        for path, leaf in shapes.items()
        if path.endswith("/kernel") or (tied and path == "embed/embedding")
    )
    t, config = job.config.context, job.config
    attention = 12 * config.layers * job.recipe.batch * t * t * config.dim
    return 6 * matrices * job.tokens + attention


@pytest.mark.parametrize("spec", ["wikigpt:tiny", "charlm:tiny", "bwetaf:tiny"])
def test_operations_are_those_of_the_closed_form(spec):
    job = job_of(spec, batch=4, accum=1)
    assert useful_flops(job) == pytest.approx(closed_form(job), rel=0.01)


def test_operations_of_a_loop_are_those_of_the_loop_unrolled():
    w, x = jnp.ones((5, 8, 8)), jnp.ones((3, 8))

    def looped(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    def unrolled(w, x):
        for one in w:
            x = jnp.tanh(x @ one)
        return x.sum()

    count = [flops.total(flops.products(jax.grad(f, (0, 1)), w, x)) for f in (looped, unrolled)]
    assert count[0] == count[1] > 2 * 5 * 3 * 8 * 8


def test_operations_of_a_convolution():
    def patches(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = flops.products(patches, jnp.ones((2, 16, 16, 3)), jnp.ones((4, 4, 3, 7)))
    assert flops.total(found) == 2 * (2 * 4 * 4) * (4 * 4 * 3) * 7


def test_of_branches_the_largest_counts_and_of_platforms_the_plain_one():
    x = jnp.ones((4, 4))

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ x @ x)

    def by_platform(x):
        return jax.lax.platform_dependent(x, default=lambda x: x @ x, tpu=lambda x: x @ x @ x)

    assert flops.total(flops.products(chosen, x)) == 2 * 2 * 4**3
    assert flops.total(flops.products(by_platform, x)) == 2 * 4**3


def test_remat_is_counted_in_the_step_and_not_in_what_is_useful():
    plain, again = (job_of(batch=4, remat=remat) for remat in ("none", "full"))
    assert useful_flops(plain) == useful_flops(again)


def test_a_frozen_model_has_no_gradient_of_its_weights():
    """Of three products of a kernel two are left; rank 2 adds 3 · 2 · (inputs + outputs)."""
    job = job_of("wikigpt:tiny", batch=4, accum=1)
    shapes = sizes.shapes(job.package.name, job.config)
    kernels = [leaf.shape for path, leaf in shapes.items() if path.endswith("/kernel")]
    adapters = 6 * 2 * sum(map(sum, kernels)) * job.tokens
    found = useful_flops(job.with_recipe(lora="rank=2"))
    assert found == pytest.approx(useful_flops(job) * 2 / 3 + adapters, rel=0.01)


# --- a compiled program

SIMULATED = """
import json, sys
from dataclasses import replace
import jax, jaxmodels
from jaxmodels.runtime.planning import flops
from jaxmodels.runtime.planning.chips import topology
from jaxmodels.runtime.planning.plan import Workload, compile_step
from jaxmodels.runtime.planning.report import report
from jaxmodels.runtime.sharding import make_mesh

arch, results = sys.argv[1], {}
package = jaxmodels.arch(arch)
for mesh in ("data=8", "data=4,model=2"):
    recipe = replace(package.RECIPES["tiny"], batch=16, accum=1, remat="none", mesh=mesh)
    job = Workload(package, package.PRESETS["tiny"], recipe)
    compiled = compile_step(job, make_mesh(mesh, jax.devices()))
    results[mesh] = report(job, compiled, topology("v5e:2x4")) | {"executed": compiled.flops}
    results[mesh]["groups"] = sorted({one.group for one in compiled.collectives})
in_parts = jax.shard_map(
    lambda x: x @ x.T, mesh=make_mesh(mesh), in_specs=jax.P("data"), out_specs=jax.P("data")
)
products = flops.products(in_parts, jax.numpy.ones((8, 4)))
results["in parts"] = flops.total(products)
again = compile_step(job.with_recipe(remat="full"), make_mesh(mesh, jax.devices()))
results["remat"] = again.flops
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def simulated():
    """The report of a step compiled for eight simulated devices, on two meshes."""
    return json.loads(printed(SIMULATED, "wikigpt", env=children.simulated(8)))


@pytest.mark.slow
def test_report_of_a_real_compilation(simulated):
    fsdp, both = simulated["data=8"], simulated["data=4,model=2"]
    assert set(fsdp) >= CONTRACT
    assert fsdp["fits"]
    assert fsdp["groups"] == [8]
    assert set(both["groups"]) >= {2, 4}
    # The backward pass computes scores again: of 16 × 32 queries and 32 keys, 32 wide, two layers.
    again = 2 * (2 * 16 * 32 * 32 * 32)
    # On a CPU gradients of biases and of norms are summed over positions by a product with ones.
    shapes = sizes.shapes("wikigpt", jaxmodels.arch("wikigpt").PRESETS["tiny"])
    sums = 2 * 16 * 32 * sum(leaf.size for leaf in shapes.values() if len(leaf.shape) == 1)
    assert fsdp["executed"] == fsdp["flops_per_step"] + again + sums
    assert simulated["remat"] > fsdp["executed"]
    assert simulated["in parts"] == 8 * 2 * 2 * 4 * 2  # 2 × 4 by 4 × 2 on each of 8 devices
    assert fsdp["collectives"]["all-reduce"]["bytes"] > 0
    assert fsdp["hbm_per_device_bytes"] == sum(fsdp["memory"].values())
    # AdamW keeps two numbers for each parameter, and a few counters and a key
    moments = fsdp["memory"]["optimizer"] - 2 * fsdp["memory"]["parameters"]
    assert 0 < moments < 64


# Cut out of programs that libtpu made.
LOOP = """\
HloModule step

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %g = bf16[1,8]{1,0} get-tuple-element(%p), index=1
  %one = u32[]{:T(128)} constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %next = u32[]{:T(128)} add(%i, %one)
  %ag = bf16[4,8]{1,0:T(8,128)S(1)} all-gather(%g), channel_id=6, replica_groups=mesh['a'=4] {'a'}
  ROOT %t = (s32[], bf16[4,8]) tuple(%next, /*index=1*/%ag)
}

%cond (p: (s32[], bf16[4,8])) -> pred[] {
  %c = u32[]{:T(128)} constant(24)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%unused (p: f32[8]) -> f32[8] {
  ROOT %ar = f32[8]{0} all-reduce(%p), channel_id=99, replica_groups={{0,1}}, to_apply=%add
}

%all-reduce-scatter (p: f32[16]) -> f32[8] {
  %whole = f32[16]{0} all-reduce(%p), channel_id=8, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %part = f32[8]{0} dynamic-slice(%whole, %i), dynamic_slice_sizes={8}
}

%series.1 (p: f32[16]) -> f32[16] {
  ROOT %a = f32[16]{0} all-gather(%p), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
}

%series.2 (p: f32[16]) -> f32[16] {
  ROOT %b = f32[16]{0} all-gather(%p), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
}

ENTRY %main (x: f32[16]) -> f32[8] {
  %w = (s32[], bf16[4,8]) while(%t0), condition=%cond, body=%body
  %f = f32[8]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %s1 = f32[16]{0} fusion(%x), kind=kCustom, calls=%series.1
  %s2 = f32[16]{0} fusion(%x), kind=kCustom, calls=%series.2
  %start = (f32[4]{0}, f32[4]{0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %done = f32[4]{0} collective-permute-done(%start)
  %alone = f32[8]{0} all-reduce(%x), channel_id=12, replica_groups={{0},{1}}, to_apply=%add
  ROOT %all = f32[8]{0} all-reduce(%f), to_apply=%add
}
"""


def test_collectives_are_read_with_loops_groups_and_series():
    found = {(c.kind, c.count, c.bytes, c.group) for c in hlo.collectives(LOOP, 8)}
    assert found == {
        ("all-gather", 12, 64, 4),  # as often as the loop runs: to 24, in steps of 2
        ("reduce-scatter", 1, 64, 2),  # what XLA makes of an all-reduce of which a part is used
        ("all-gather", 1, 64, 4),  # two texts, one channel
        ("collective-permute", 1, 16, 2),
        ("all-reduce", 1, 32, 8),  # no groups: all devices
    }


def test_bytes_that_a_ring_sends():
    assert hlo.Collective("all-reduce", 1, 80, 4).sent == 120
    assert hlo.Collective("all-gather", 1, 80, 4).sent == 60
    assert hlo.Collective("collective-permute", 1, 80, 2).sent == 80
    gathers = [hlo.Collective("all-gather", 3, 80, 4), hlo.Collective("all-gather", 1, 4, 4)]
    assert hlo.summary(gathers) == {"all-gather": {"count": 4, "bytes": 183}}


def test_trip_count_that_xla_notes_wins():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert ("all-gather", 7) in {(c.kind, c.count) for c in hlo.collectives(text, 8)}


@pytest.mark.parametrize(
    ("message", "gigabytes"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (78.92G) exceeds available HBM (15.75G).", 78.92),
        ("E1000: CompileTimeHbmOom: Ran out of memory in memory space hbm. Used 20.50G of 15.75G "
         "hbm. Exceeded hbm capacity by 4.75G.", 20.5),
        ("RESOURCE_EXHAUSTED: something new", 0),
    ],
)  # fmt: skip
def test_what_the_compiler_needed_is_read_off_its_refusal(message, gigabytes):
    assert needed(message) == int(gigabytes * GIB)


def test_every_chip_has_its_source_and_sound_numbers():
    for name, chip in CHIPS.items():
        assert chip.source
        assert 0.9 * chip.hbm < chip.usable * chip.devices < 1.01 * chip.hbm, name
        assert all(topology(f"{name}:{shape}").chips for shape in chip.shapes)


def test_slices():
    pod, board = topology("v5e:16x16"), topology("V5e:2x2")
    assert (pod.chips, pod.devices, board.devices) == (256, 256, 4)
    assert topology("v3:2x2").devices == 8  # two cores a chip
    assert pod.interconnect == 4 * 50e9
    assert board.interconnect == 2 * 50e9  # one neighbour on each side
    assert topology("v5e:1x1").interconnect == 0


@pytest.mark.slow
def test_roofline_takes_the_slowest():
    slice_ = topology("v5e:2x2")
    gather = hlo.Collective("all-gather", 10, 10**9, 4)
    times = roofline(compiled_of(GIB, [gather], 4 * 197 * 10**10), slice_)
    assert times["compute"] == pytest.approx(0.01)
    assert times["memory"] == pytest.approx(2 * GIB / 819e9)
    assert times["interconnect"] == pytest.approx(0.075)
    job = job_of(batch=4)
    result = report(job, compiled_of(GIB, [gather], 4 * 197 * 10**10), slice_)
    assert (result["bound"], result["roofline_step_seconds"]) == ("interconnect", 0.075)
    peak = 4 * 197e12
    assert result["mfu_bound"] == pytest.approx(useful_flops(job) / 0.075 / peak)
    assert result["tokens_per_second_bound"] == pytest.approx(job.tokens / 0.075)
