"""One two-way table for each class of transformers: reading, writing and building follow from it."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import jaxmodels
from bridge.core.transformers_class import Key, ModelType, Only, TransformersClass
from bridge.core.twins import transformers_classes
from bridge.formats.transformers_folder import kinds
from jaxmodels.errors import MISMATCH, Problem
from tests.contract import smallest

HERE = Path("config.json")


@dataclass(frozen=True)
class Config:
    vocab: int = 32
    dim: int = 16
    heads: int = 4
    kv_heads: int = 2
    theta: float = 10_000.0


LLAMA = TransformersClass(
    format="llama",
    types={"llama": ModelType("Llama")},
    head="ForCausalLM",
    rows=(
        Key("vocab_size", "vocab", 32_000),
        Key("hidden_size", "dim", 4096),
        Key("num_attention_heads", "heads", 32),
        Key("num_key_value_heads", "kv_heads", lambda fields: fields.get("heads")),
    ),
    only={
        "rms_norm_eps": Only(1e-5, default=1e-6, written=True),
        "tie_word_embeddings": Only(False),
    },
    known=frozenset({"pretraining_tp", "rope_parameters"}),
    reads=lambda said, where: {"theta": said.get("rope_parameters", {}).get("rope_theta", 1e4)},
    writes=lambda config: {"rope_parameters": {"rope_theta": config.theta}},
)


def test_a_class_from_outside_takes_a_table_and_nothing_else():
    config = Config(theta=5e5)
    keys = LLAMA.keys(config)
    assert keys["architectures"] == ["LlamaForCausalLM"]
    assert LLAMA.read(keys, HERE) == {**vars(config)}
    assert LLAMA.build(replace(config, dim=32)).config.num_key_value_heads == 2


def test_null_stands_for_what_the_class_derives():
    keys = LLAMA.keys(Config()) | {"num_key_value_heads": None}
    assert LLAMA.read(keys, HERE)["kv_heads"] == 4
    del keys["num_key_value_heads"]
    fields = LLAMA.read(keys, HERE)
    assert "kv_heads" not in fields
    assert LLAMA.defaults(fields)["kv_heads"] == 4


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-3}, {"rms_norm_eps": None}, {}])
def test_one_value_is_computed_and_a_missing_key_is_the_classs_own(change):
    keys = LLAMA.keys(Config()) | change
    if not change:
        del keys["rms_norm_eps"]  # transformers takes 1e-6
    with pytest.raises(Problem, match="rms_norm_eps") as caught:
        LLAMA.read(keys, HERE)
    assert caught.value.exit_code == MISMATCH


def test_a_key_that_nobody_knows():
    said = LLAMA.keys(Config()) | {"attention_sink": 4}
    assert "attention_sink" in LLAMA.notes(said, HERE, named=True)[0]
    with pytest.raises(Problem, match="attention_sink"):
        LLAMA.notes(said | {"architectures": ["MyLlama"]}, HERE, named=True)


def test_a_config_is_written_again_as_it_was_unless_it_changed():
    was = LLAMA.keys(Config()) | {"pretraining_tp": 1}
    assert LLAMA.written(LLAMA.keys(Config()), was, HERE) == was
    new = LLAMA.keys(Config(kv_heads=1))
    assert LLAMA.written(new, was, HERE) == {**was, "num_key_value_heads": 1}


@pytest.mark.parametrize(("arch", "cls"), [*transformers_classes()])
def test_every_table_reads_what_it_writes(arch, cls):
    presets = jaxmodels.arch(arch).PRESETS.values()
    for config in [smallest(arch), *presets]:
        keys = cls.keys(config)
        fields = cls.read(keys, HERE)
        assert fields.items() <= vars(config).items()
        unsaid = {name for name in vars(config) if name not in fields} - cls.own.keys()
        assert unsaid <= {"hidden"}  # of DINOv2: shapes show it
        assert cls.written(keys, keys, HERE) == keys
    assert {kind.type for kind in kinds().values() if kind.arch == arch} == {*cls.types}
