"""The suites that compile and run nothing: plan and scaling."""

import json
from dataclasses import replace

import pytest

import jaxmodels
from benchmarks import plan, scaling
from benchmarks.records import Absent
from jaxmodels.runtime.planning import hlo
from jaxmodels.runtime.planning.cycles import Operation
from jaxmodels.runtime.planning.plan import Compiled, TooLarge

REDUCE = hlo.Collective("all-reduce", count=3, bytes=1000, group=2)
MEMORY = {"parameters": 10, "optimizer": 20, "batch": 1, "temporaries": 5, "code": 4}
COMPILED = Compiled(MEMORY, 819_000, [REDUCE], 10**6, 0, [], 0.1, 0.2)
WORDS = ["--preset", "charlm:tiny", "--topology", "v5e:2x2", "--batch", "16"]


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(plan, "find_spec", lambda name: name)
    monkeypatch.setattr(plan, "version", lambda name: "0.1")
    monkeypatch.setattr(plan.tpu, "compile_isolated", lambda *args: COMPILED)
    return monkeypatch


def test_plan(tmp_path, capsys, compiler):
    (record,) = plan.main([*WORDS, "--out", str(tmp_path)])
    assert json.loads((tmp_path / "plan.jsonl").read_text()) == json.loads(json.dumps(record))
    assert record["fits"]
    assert record["hbm_per_device_bytes"] == 40
    assert record["median"] == 1e3 * record["roofline_step_seconds"]
    assert record["settings"]["libtpu"] == "0.1"
    assert "compiled in" in capsys.readouterr().out


def test_a_plan_that_does_not_fit_is_recorded(tmp_path, capsys, compiler):
    def refuses(*args):
        raise TooLarge(1 << 35, 1.0)

    compiler.setattr(plan.tpu, "compile_isolated", refuses)
    (record,) = plan.main([*WORDS, "--out", str(tmp_path)])
    assert not record["fits"]
    assert "32.0 GiB do not fit" in capsys.readouterr().out


def test_plan_without_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(Absent, match="libtpu is not installed"):
        plan.main([*WORDS, "--out", str(tmp_path)])


def test_efficiency_of_a_program_that_does_not_get_smaller(tmp_path, capsys, monkeypatch):
    """The same program on every number of devices: half of two devices is wasted when the batch
    stays, none when it grows."""
    alone = replace(COMPILED, collectives=[])

    def compiled(*args):
        return COMPILED if args[-1] > 1 else alone

    monkeypatch.setattr(scaling, "_compiled", compiled)
    words = ["--preset", "charlm:tiny", "--devices", "1", "2", "8", "--out", str(tmp_path)]
    records = scaling.main(words)
    lines = (tmp_path / "scaling.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(records))
    found = {(one["scaling"], one["devices"]): one for one in records}
    assert {at: one["efficiency"] for at, one in found.items()} == {
        ("strong", 1): 1,
        ("strong", 2): 0.5,
        ("strong", 8): 0.125,
        ("weak", 2): 1,
        ("weak", 8): 1,
    }
    assert found["strong", 1]["bound"] == "memory"
    assert found["strong", 1]["median"] == pytest.approx(1e3 * 819_000 / 819e9)
    assert found["weak", 8]["sequences"] == 8 * found["strong", 8]["sequences"]
    assert found["strong", 2]["sent_bytes"] == 3 * 1000
    assert "all-reduce × 3" in capsys.readouterr().out


def test_scaling_on_gpus_is_by_what_the_compiler_expects(tmp_path, capsys, monkeypatch):
    """Twice as many devices each take as long, and wait for a collective on two hosts."""
    seen = []

    def compiled(package, config, recipe, name):
        seen.append((name, recipe.batch))
        row = Operation(10**6, 1, "fusion", "f32[]", "")
        one = hlo.Collective("all-reduce", 1, 1000, 16, cycles=10**6)
        return replace(COMPILED, collectives=[one] if "x" in name else [], operations=[row])

    monkeypatch.setattr(scaling, "find_spec", lambda name: name)
    monkeypatch.setattr(scaling.gpu, "compile_isolated", compiled)
    words = ["--preset", "charlm:tiny", "--chip", "h100", "--scaling", "weak", "--batch", "2"]
    records = scaling.main([*words, "--devices", "1", "8", "16", "--out", str(tmp_path)])
    assert seen == [("h100:1", 2), ("h100:8", 16), ("h100:2x8", 32)]
    assert [record["unit"] for record in records] == ["ms expected"] * 3
    assert [record["median"] for record in records] == pytest.approx([1, 1, 2])
    assert [record["efficiency"] for record in records] == pytest.approx([1, 1, 0.5])
    assert "1.00 ms | all-reduce × 1" in capsys.readouterr().out


def test_scaling_on_gpus_without_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "find_spec", lambda name: None)
    with pytest.raises(Absent, match="CUDA plugin"):
        scaling.main(["--chip", "h100", "--out", str(tmp_path)])


@pytest.mark.slow
def test_two_devices_exchange_gradients():
    """Compiled for two parts of this CPU, in a process that has two."""
    config = jaxmodels.preset("charlm:tiny")[2]
    recipe = jaxmodels.arch("charlm").RECIPES["tiny"]
    found = scaling._compiled("jaxmodels.charlm", config, recipe, 2)
    kinds = {one.kind: one.group for one in found.collectives}
    assert kinds["all-reduce"] == 2
