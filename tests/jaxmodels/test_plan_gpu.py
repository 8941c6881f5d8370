"""jaxmodels plan for GPUs: names, hosts, what is read off a program, the command. No compiler."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxmodels import extras
from jaxmodels.__main__ import main
from jaxmodels.errors import NO_SPACE, USAGE, Problem
from jaxmodels.layers import kernels as layer_kernels
from jaxmodels.layers import target
from jaxmodels.runtime.planning import cycles, gpu, hlo
from jaxmodels.runtime.planning.chips import GIB, GpuHosts, peak_flops, topology
from jaxmodels.runtime.planning.estimate import Estimate
from jaxmodels.runtime.planning.gpus import GPUS
from jaxmodels.runtime.planning.groups import members
from jaxmodels.runtime.planning.kernels import attention_flops, kernels
from jaxmodels.runtime.planning.plan import TooLarge
from jaxmodels.runtime.planning.report import expected, roofline
from jaxmodels.runtime.planning.search import Search, enough
from tests.jaxmodels.planning import CONTRACT, compiled_of, job_of

# In the form in which XLA writes a module for GPUs; numbers of ours.
TEXT = Path(__file__).with_name("gpu_step.hlo").read_text()


# --- names


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_source_and_sound_numbers(name):
    host, one = GPUS[name], topology(f"{name}:8")
    assert host.source
    assert one.devices == 8
    assert one.flops == host.flops == peak_flops(host.kind)
    assert host.nic < host.nvlink < host.bandwidth
    assert f'"{host.kind}"' in host.description
    assert host.description.count("{") == host.description.count("}")


def test_hosts_and_gpus_of_each():
    assert (topology("H100:2x8").shape, topology("h100:8").shape) == ((2, 8), (1, 8))
    assert topology("b200:4x2").devices == 8
    assert topology("h100:1x8").name == "h100:8"
    assert topology("h100:1").interconnect == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a100:8", ["a100-40g:8 or a100-80g:8"]),
        ("h1000:4", ["h100:4"]),
        ("dgx-h100:8", ["h100:8"]),
        ("h100-80g:2x8", ["h100:2x8"]),
        ("v100:4", ["known GPUs: a100-40g, a100-80g, h100, h200, b200"]),
        ("h100", ["h100:8", "h100:2x8"]),
        ("h100:0", ["h100:8"]),
        ("h100:x8", ["h100:8"]),
        ("h100:" + "9" * 5000, ["h100:8"]),
        ("v4-100", ["v4, v5e"]),
        ("h100:1x1x8", ["h100:8"]),
        ("h100:16", ["at most 8 GPUs", "h100:2x8"]),
        ("h200:2x16", ["at most 8 GPUs", "h200:4x8"]),
        ("b200:9999x8", ["too many hosts"]),
        ("mi300x:8", ["h200", "v5e"]),
        ("rubin", ["h200", "v5e"]),
        ("", ["--topology is missing", "h100:8"]),
    ],
)
def test_unknown_gpus_are_refused_and_near_names_given(name, words):
    with pytest.raises(Problem) as refused:
        topology(name)
    problem = refused.value
    assert problem.exit_code == USAGE
    text = f"{problem} {problem.why} {problem.fix}"
    assert all(word in text for word in words), text


def test_jax_takes_three_quarters_of_the_memory_or_what_the_environment_says(monkeypatch):
    assert topology("h100:1").chip.usable == int(0.75 * GPUS["h100"].memory)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert topology("h100:1").chip.usable == GPUS["h100"].memory // 2
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(Problem, match="not a number") as refused:
        topology("h100:1")
    assert refused.value.exit_code == USAGE


# --- what a program says


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", (0, 2)),
        ("replica_groups=[4,2]<=[8], to_apply=%add", (0, 1)),
        ("replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a'}, dimensions={1}", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", tuple(range(8))),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", (3, 0)),
        ("to_apply=%add", tuple(range(8))),
    ],
)
def test_members_of_a_group_in_every_notation(text, found):
    assert members(f"%x = f32[8]{{0}} all-reduce(%y), {text}", 8) == found


def test_groups_across_hosts_use_the_network():
    pair = topology("h100:2x8")
    assert isinstance(pair, GpuHosts)
    assert pair.rate(range(8)) == 450e9
    assert pair.rate((0, 8)) == 50e9  # one card in each host
    assert pair.rate((0, 1, 8, 9)) == 100e9
    assert pair.interconnect == 400e9  # all eight cards
    reduces = [hlo.Collective("all-reduce", 1, 10**9, 2, devices=at) for at in ((0, 1), (0, 8))]
    inside, across = (
        roofline(compiled_of(collectives=[one]), pair)["interconnect"] for one in reduces
    )
    assert inside == pytest.approx(1 / 450)
    assert across == pytest.approx(1 / 50)


def test_time_of_a_program_is_read_from_the_model_that_knows_each_operation():
    rows = {(row.kind, row.runs): row.cycles for row in cycles.operations(TEXT)}
    assert rows == {
        ("cuBLAS product", 6): 6 * 2500,
        ("loop", 1): 10_250,
        ("Triton fusion", 1): 300,
        ("Triton product", 1): 17_000,
        ("result", 1): 4000,
    }
    assert cycles.operations(TEXT)[1].source == "wikigpt/model.py:116"


@pytest.mark.parametrize(
    ("inputs", "microseconds", "found"),
    [("bf16", 32_718.7425, 511_230), ("bf16", 800, 800_000), ("f32", 32_718.7425, 32_718_742)],
)
def test_products_into_float32_are_not_counted_64_times(inputs, microseconds, found):
    text = f"""
ENTRY %main (x: {inputs}[4704,768]) -> f32[4704,50264] {{
  %x = {inputs}[4704,768]{{1,0}} parameter(0)
  %w = {inputs}[768,50264]{{1,0}} parameter(1)
  ROOT %p = (f32[4704,50264]{{1,0}}, s8[64]{{0}}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={{"dot_dimension_numbers":\
{{"lhs_contracting_dimensions":["1"]}},"reification_cost":[{{"exec_time_us":{microseconds},\
"compute_time_us":0,"name":"sol"}}]}}
}}"""
    (row,) = cycles.operations(text)
    assert row.cycles == found


def test_collectives_are_sums_of_their_arrays_and_overlapped_or_not():
    reduce, scatter = hlo.collectives(TEXT, 4)
    assert (reduce.bytes, reduce.beside, reduce.cycles) == (4 * 32, 10_550, 40_500)
    assert (scatter.kind, scatter.bytes, scatter.beside) == ("reduce-scatter", 4 * 24, 0)
    assert scatter.members == (0, 2)
    slice_ = topology("h100:4")
    compiled = compiled_of(0, [reduce, scatter], operations=cycles.operations(TEXT))
    waits = (40_500 - 10_550) / 1e9 + scatter.sent / 450e9
    assert expected(compiled, slice_)["exposed_collectives"] == pytest.approx(waits)


def test_no_collective_is_faster_than_its_links():
    """XLA takes 2 × 4 GPUs for those of one host."""
    reduce = hlo.Collective("all-reduce", 3, 8 * 10**8, 8, cycles=10**6)
    compiled = compiled_of(0, [reduce], operations=cycles.operations(TEXT))
    found = expected(compiled, topology("h100:2x4"))["exposed_collectives"]
    assert found == pytest.approx(3 * reduce.sent / (4 * 50e9))
    assert expected(compiled, topology("h100:8"))["exposed_collectives"] == pytest.approx(
        3 * reduce.sent / 450e9
    )


def test_kernels_are_counted_and_so_is_the_work_of_attention():
    assert kernels(TEXT) == {
        "cuBLAS product": 6,
        "cuDNN attention": 6,
        "cuDNN attention, backward": 1,
        "Triton fusion": 1,
        "Triton product": 1,
    }
    product = 2 * (2 * 4 * 16 * 16) * 8
    assert attention_flops(TEXT) == 6 * 2 * product // 2 + 5 * product  # forward is causal


# --- the described GPU decides what cuDNN takes


@pytest.fixture
def _cudnn(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as library

    if library.cuda_versions is None:
        versions = SimpleNamespace(cudnn_get_version=lambda: 91000)
        monkeypatch.setattr(library, "cuda_versions", versions)


@pytest.mark.usefixtures("_cudnn")
@pytest.mark.parametrize(
    ("name", "width", "taken"),
    [("a100-80g", 128, True), ("a100-80g", 256, False), ("h100", 256, True), ("b200", 78, True)],
)
def test_heads_are_as_wide_as_the_described_gpu_takes(name, width, taken):
    x = jnp.zeros((2, 64, 2, width), jnp.bfloat16)
    with gpu.capability(topology(f"{name}:1")):
        assert (layer_kernels._cudnn(x, x, x, True) is not None) == taken


@pytest.mark.usefixtures("_cudnn")
@pytest.mark.parametrize(("described", "taken"), [("NVIDIA H100 80GB HBM3", True), ("V100", False)])
def test_an_old_gpu_of_this_machine_is_not_asked_for_another(monkeypatch, described, taken):
    old = SimpleNamespace(platform="gpu", device_kind="V100", compute_capability="7.0")
    monkeypatch.setattr(jax, "local_devices", lambda: [old])
    device = jax.sharding.AbstractDevice(described, 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,) * 2, ("data", "model"), abstract_device=device)
    x = jnp.zeros((2, 64, 2, 64), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh):
        assert target.compute_capability() == (None if taken else 7.0)
        assert (layer_kernels._cudnn(x, x, x, True) is not None) == taken
    assert target.compute_capability() == 7.0


# --- the command


@pytest.fixture
def invented(monkeypatch):
    """A compiler that needs 10 GiB for each sequence on a device, a fifth of it with remat."""

    def compile_isolated(package, config, recipe, name):
        data = int(recipe.mesh.partition(",")[0].partition("=")[2] or topology(name).devices)
        size = int(recipe.batch / data * 10 * GIB * (0.2 if recipe.remat == "full" else 1))
        operations = [] if name.startswith("a100") else cycles.operations(TEXT)
        found = compiled_of(size, hlo.collectives(TEXT, 4), operations=operations)
        found.calls.update(kernels(TEXT))
        return found

    monkeypatch.setattr(gpu, "prepare", lambda: None)
    monkeypatch.setattr(gpu, "compile_isolated", compile_isolated)


def run(capsys, *argv):
    code = main(["plan", "wikigpt:tiny", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_what_fits_is_reported_with_its_sources(invented, capsys):
    argv = ("--topology", "h100:2x2", "--batch", "8", "--operations")
    code, out, _ = run(capsys, *argv, "--json")
    result = json.loads(out)
    assert code == 0
    assert set(result) >= CONTRACT
    assert result["kernels"]["cuDNN attention"] == 6
    assert result["chip"]["network"] == 50e9
    assert "H100" in result["chip"]["source"]
    assert result["expected_step_seconds"] >= result["roofline_step_seconds"]
    assert result["operations"][0]["seconds"] == pytest.approx(17e-6)
    code, out, _ = run(capsys, *argv)
    assert code == 0
    for words in (
        "on h100:2x2, 4 devices",
        "fits: 20.00 of 59.33 GiB",
        "JAX takes 75% of the 79.1 GiB",
        "expected by the compiler's model of the chip, not measured",
        "cuDNN attention × 6",
        "NVLink 450 GB/s, network 50 GB/s (data sheet of the H100",
        "Triton product",
    ):
        assert words in out


def test_without_the_compilers_estimate_there_is_the_bound_and_it_says_so(invented, capsys):
    argv = ("--topology", "a100-40g:4", "--batch", "8")
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "the compiler has no estimate of the time for this device" in out
    assert "expected_step_seconds" not in json.loads(run(capsys, *argv, "--json")[1])


def test_what_does_not_fit_names_the_nearest_that_does(invented, capsys):
    code, out, err = run(capsys, "--topology", "h100:2", "--batch", "16", "--json")
    result = json.loads(out)
    assert code == NO_SPACE
    assert not result["fits"]
    assert result["hbm_per_device_bytes"] == 80 * GIB
    assert result["nearest"]["remat"] == "full"
    assert "needs 80.0 GiB and has 59.3" in " ".join(err.split())
    assert result["nearest"]["flags"] in err


def test_bad_settings_are_refused_before_anything_is_compiled(invented, capsys):
    assert run(capsys, "--topology", "h100:16")[0] == USAGE
    code, _, err = run(capsys, "--topology", "h100:2x2", "--mesh", "data=8")
    assert code == USAGE
    assert "h100:2x2 has 4" in err


def test_without_the_plugin_it_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "installed", lambda module: False)
    code, _, err = run(capsys, "--topology", "h100:8")
    assert code == USAGE
    assert "pip install 'jaxmodels[plan-gpu]'" in err
    assert extras.EXTRAS[gpu.PLUGINS[0]] == "plan-gpu"


def test_where_no_settings_fit_more_devices_are_named(invented, monkeypatch, capsys):
    def refuses(*_):
        raise TooLarge(100 * GIB, 1.0)

    monkeypatch.setattr(gpu, "compile_isolated", refuses)
    code, _, err = run(capsys, "--topology", "h100:1", "--batch", "4", "--minutes", "0")
    assert code == NO_SPACE
    assert "h100:2 is enough by an estimate" in " ".join(err.split())


def test_devices_that_are_enough_by_an_estimate(monkeypatch):
    def needed(estimate, setting):
        return int(100 * GIB / setting.data)

    monkeypatch.setattr(Estimate, "bytes", needed)
    found = {name: enough(job_of(), topology(name)) for name in ("h100:1", "a100-40g:2", "v5e:1x1")}
    assert found == {"h100:1": "h100:2", "a100-40g:2": "a100-40g:4", "v5e:1x1": "v5e:2x4"}
    monkeypatch.setattr(Estimate, "bytes", lambda *_: 10**15)
    assert enough(job_of(), topology("h100:1")) == ""


def test_a_search_tries_larger_batches_of_the_best():
    """Estimates call a batch of one as fast as any; the compiler knows better, up to 32."""
    batches = []

    def compiled(job):
        batches.append(job.recipe.batch)
        return compiled_of(job.recipe.batch * GIB // 8)

    def reported(job, _):
        return {"expected_tokens_per_second": float(min(job.recipe.batch, 32))}

    job, said = job_of(batch=64, accum=1), []
    search = Search(job, topology("h100:1"), compiled, reported, 60.0, said.append)
    best = search.frontier(most=12)[0]
    assert best.setting.batch == 32
    assert batches[-6:] == [2, 4, 8, 16, 32, 64]
    assert len(batches) <= 12
