import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmodels
from jaxmodels import sizes
from jaxmodels.__main__ import main
from jaxmodels.commands.list import parameter_count
from jaxmodels.errors import DONE, USAGE
from jaxmodels.runtime.paths import layer_of

TINY = [f"{arch}:tiny" for arch in jaxmodels.ARCHS]


@pytest.mark.parametrize("spec", TINY)
def test_layers_add_up_to_the_model(spec, capsys):
    arch, _, config = jaxmodels.preset(spec)
    assert main(["list", spec, "--json"]) == DONE
    shown = json.loads(capsys.readouterr().out)
    count = parameter_count(arch, config)
    assert sum(layer["parameters"] for layer in shown["layers"]) == shown["parameters"] == count
    assert shown["bytes"] == 4 * count  # parameters are float32
    layers = [layer["layer"] for layer in shown["layers"]]
    assert len(layers) == len(set(layers)) > 2
    assert main(["list", spec]) == DONE
    assert f"{count:,}" in capsys.readouterr().out.splitlines()[-1]


def test_summary_of_a_module_and_of_its_preset_are_the_same():
    text = jaxmodels.summary(jaxmodels.create("charlm:tiny"))
    assert text == jaxmodels.summary("charlm:tiny")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["embed"] == ["1", "2,048", "8,192"]
    assert rows["total"] == ["27", "25,344", "101,376"]
    assert list(rows)[:2] == ["blocks/0", "blocks/1"]


def test_an_unknown_preset(capsys):
    assert main(["list", "charlm:tinny"]) == USAGE
    assert "did you mean tiny" in capsys.readouterr().err


def test_layer_of():
    known = {
        "blocks/0/attn/qkv/kernel": "blocks/0",
        "dinov2/blocks/11/norm1/scale": "dinov2/blocks/11",
        "embed/embedding": "embed",
        "memory/read/kernel": "memory/read",
        "pos": "pos",
    }
    assert {path: layer_of(path) for path in known} == known


@given(st.lists(st.sampled_from(["a", "b", "0", "12", "norm"]), min_size=1, max_size=5))
def test_a_layer_is_the_beginning_of_its_path(parts):
    path = "/".join(parts)
    assert path == layer_of(path) or path.startswith(layer_of(path) + "/")


def test_the_table_is_aligned():
    text = sizes.table(sizes.by_layer(sizes.shapes("charlm", jaxmodels.preset("charlm:tiny")[2])))
    assert len({len(line) for line in text.splitlines()}) == 1
