"""What a step costs the host: the suite runs, on models that are trivial. No timing."""

import json

import pytest

import jaxmodels
from benchmarks import host


@pytest.mark.slow
def test_host(tmp_path, capsys):
    records = host.main(["--steps", "3", "--rounds", "2", "--out", str(tmp_path)])
    lines = (tmp_path / "host.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(records))
    medians = {record["contestant"]: record["median"] for record in records}
    assert list(medians) == ["computed", "told", "read", "loop"]
    assert medians["told"] < medians["read"]
    assert records[-1]["overhead_ms"] == pytest.approx(medians["loop"] - medians["computed"])
    assert "charlm:tiny" in capsys.readouterr().out


@pytest.mark.parametrize("preset", [words[1] for words in host.RUNS])
def test_trivial_models_have_one_layer_of_each_kind_and_their_towers_see_one_patch(preset):
    config = host.trivial(jaxmodels.preset(preset)[2])
    towers = [config.dinov2] if hasattr(config, "dinov2") else []
    for part in (config, *towers):
        layers = [name for name in vars(part) if name.endswith("layers")]
        assert {getattr(part, name) for name in layers} == {1}
    for tower in towers:
        assert config.image_size == tower.image_size == tower.patch
