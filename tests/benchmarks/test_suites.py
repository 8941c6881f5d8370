"""The suites on tiny sizes: they run, agree on numbers and write complete records. No timing."""

import json
from dataclasses import replace
from math import prod

import pytest
import torch

import jaxmodels
from benchmarks import (
    bridge,
    data,
    decode,
    flops,
    forward,
    memory,
    peers,
    quality,
    resident,
    step,
    ternary,
    trainers,
)
from benchmarks.batches import shapes, units_per_step, values
from benchmarks.harness import Timing
from jaxmodels import sizes
from jaxmodels.errors import USAGE, Problem
from tests.contract import smallest

FIELDS = {
    "suite",
    "case",
    "contestant",
    "unit",
    "median",
    "min",
    "max",
    "first",
    "compile_ms",
    "rounds",
    "times_ms",
    "times_as_fast_as",
    "settings",
    "machine",
    "versions",
    "commit",
    "date",
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny tensors: threads would only wait for each other."""
    for module in (flops, peers):
        monkeypatch.setattr(module, "cores", lambda: 1)


def written(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        assert set(line) >= FIELDS
        assert len(line["times_ms"]) == line["rounds"]
        assert line["min"] - 1e-4 <= min(line["times_ms"]) <= line["median"] + 1e-4
    return lines


@pytest.mark.slow
def test_step(tmp_path, capsys):
    words = ["--preset", "charlm:tiny", "--batch", "128", "--rounds", "2", "--no-compile"]
    records = step.main([*words, "--out", str(tmp_path)])
    assert written(tmp_path / "step.jsonl") == json.loads(json.dumps(records))
    names = [record["contestant"] for record in records]
    assert names == ["jaxmodels", "PyTorch eager", "PyTorch eager, 4 slices"]
    # Same weights and batch, and no dropout in this preset: the first losses are the same.
    assert [record["first_loss"] for record in records] == pytest.approx(
        [records[0]["first_loss"]] * 3, abs=1e-5
    )
    assert records[0]["gflop_per_step"] == pytest.approx(_gflop(), rel=1e-6)
    assert records[0]["tokens_per_second"] * records[0]["median"] == pytest.approx(1e3 * 128 * 32)
    assert set(records[0]["times_as_fast_as"]) == set(names[1:])
    assert "| PyTorch eager |" in capsys.readouterr().out


def _gflop():
    """By hand: tiny has dim 32, hidden 64, 2 layers, vocabulary 64; 128 × 32 tokens."""
    d, f, v, t = 32, 64, 64, 32
    token = 2 * (2 * (3 * d * d + d * d + 2 * d * f + f * d) + d * v) + 2 * 4 * t * d
    return 3 * token * 128 * t / 1e9


WORDS = ["--presets", "charlm:tiny", "--batches", "2", "--prompt", "4", "--new", "40"]


@pytest.mark.slow
def test_decode(tmp_path, capsys):
    records = decode.main([*WORDS, "--rounds", "2", "--out", str(tmp_path)])
    assert written(tmp_path / "decode.jsonl") == json.loads(json.dumps(records))
    names = ["jaxmodels", "transformers generate", "PyTorch loop"]
    assert [record["contestant"] for record in records] == names * 2
    greedy, sampled = records[:3], records[3:]
    assert min(record["greedy_tokens_agreed"] for record in greedy) >= decode.AGREE
    assert all("greedy_tokens_agreed" not in record for record in sampled)
    for record in records:
        assert 0 < record["first_token_ms"] < record["median"] + 1e3
        assert record["weight_bytes_per_token"] == 4 * (_parameters() - 64 * 32)  # no embedding
    assert "charlm:tiny batch 2 sampled" in capsys.readouterr().out


@pytest.mark.slow
def test_packed_weights_are_timed_against_float32(tmp_path, monkeypatch):
    monkeypatch.setitem(jaxmodels.arch("bitgen").PRESETS, "tiny", smallest("bitgen"))
    words = ["--presets", "bitgen:tiny", "--batches", "2", "--prompt", "4", "--new", "8"]
    records = decode.main([*words, "--rounds", "1", "--out", str(tmp_path)])
    packed, plain = records[:2]
    assert [packed["contestant"], plain["contestant"]] == [decode.OURS, decode.UNPACKED]
    assert packed["greedy_tokens_agreed"] == plain["greedy_tokens_agreed"] == 8
    shapes = sizes.shapes("bitgen", jaxmodels.preset("bitgen:tiny")[2])
    kernels = sum(
        prod(leaf.shape)
        for path, leaf in shapes.items()
        if path.startswith("decoder/") and path.endswith("/kernel")
    )
    saved = plain["weight_bytes_per_token"] - packed["weight_bytes_per_token"]
    assert saved == 4 * kernels - kernels // 4


def _parameters():
    shapes = sizes.shapes("charlm", jaxmodels.preset("charlm:tiny")[2])
    return sum(prod(leaf.shape) for leaf in shapes.values())


def test_time_for_each_further_token():
    whole, first = Timing("a", 0, [5.0, 9.0, 6.0]), Timing("a", 0, [1.0, 1.0, 2.0])
    assert decode.per_token(whole, first, 5) == 1.0
    assert decode.per_token(whole, first, 1) is None


@pytest.mark.slow
def test_a_model_that_transformers_has(tmp_path):
    """GPT-2 is its own peer, with a vocabulary that may be padded."""
    words = ["--presets", "wikigpt:tiny", "--batches", "2", "--prompt", "4", "--new", "33"]
    decode.main([*words, "--rounds", "1", "--out", str(tmp_path)])
    words = ["--preset", "wikigpt:tiny", "--batch", "8", "--rounds", "1", "--no-compile"]
    records = step.main([*words, "--out", str(tmp_path)])
    losses = [record["first_loss"] for record in records]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-5)


def test_greedy_contestants_that_disagree_are_an_error(tmp_path, monkeypatch):
    honest = decode.torch_loop

    def wrong(*args):
        call = honest(*args)
        return lambda index: (call(index) + 1) % 64

    monkeypatch.setattr(decode, "torch_loop", wrong)
    with pytest.raises(Problem, match="different tokens"):
        decode.main([*WORDS, "--rounds", "1", "--out", str(tmp_path)])
    assert not (tmp_path / "decode.jsonl").exists()


@pytest.mark.slow
def test_a_loss_of_other_targets_than_every_next_token(tmp_path):
    words = ["--preset", "wigip:tiny", "--batch", "4", "--rounds", "1", "--no-compile"]
    records = step.main([*words, "--out", str(tmp_path)])
    losses = [record["first_loss"] for record in records]
    assert len(losses) == 2
    assert losses == pytest.approx([losses[0]] * 2, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bitgen", "bitgen_stage1"])
def test_images_and_captions_are_trained_in_pytorch_too(arch, tmp_path, monkeypatch):
    torch.manual_seed(1)  # its noise is drawn from the global generator
    if arch == "bitgen":  # of stage 1 the noise moves a small model's loss too far
        monkeypatch.setitem(jaxmodels.arch(arch).PRESETS, "tiny", smallest(arch))
    words = ["--preset", f"{arch}:tiny", "--batch", "8", "--rounds", "1", "--no-compile"]
    records = step.main([*words, "--out", str(tmp_path)])
    assert [record["contestant"] for record in records] == ["jaxmodels", "PyTorch eager"]
    # Each side draws its own noise (`test_torch_objectives` compares them without).
    losses = [record["first_loss"] for record in records]
    assert losses == pytest.approx([losses[0]] * 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in jaxmodels.ARCHS if arch != "dinov2"])
def test_batches_are_what_the_loss_takes(arch):
    config = jaxmodels.preset(f"{arch}:tiny")[2]
    recipe = replace(jaxmodels.arch(arch).RECIPES["tiny"], batch=4, accum=2)
    wanted = shapes(arch, config, recipe)
    first, second = values(wanted, config, count=2)
    for name, leaf in wanted.items():
        assert (first[name].shape, first[name].dtype) == (leaf.shape, leaf.dtype)
    assert first["tokens"].max() < config.vocab
    assert (first["tokens"] != second["tokens"]).any()
    assert units_per_step(wanted)["tokens"] == 4 * config.context
    assert ("images" in units_per_step(wanted)) == ("images" in wanted)
    work = sum(product.flops for product in step._forward(arch, config, recipe, wanted))
    assert work > 0


def test_an_optimiser_that_pytorch_has_not_is_refused():
    lion = replace(jaxmodels.arch("charlm").RECIPES["tiny"].optim, name="lion")
    with pytest.raises(Problem, match="PyTorch has no optimiser") as caught:
        trainers._torch_optimisers("charlm", None, lion, torch.nn.Linear(1, 1))
    assert caught.value.exit_code == USAGE


def test_forward(tmp_path, capsys):
    words = ["--preset", "dinov2:tiny", "--side", "56", "--rounds", "1", "--no-compile"]
    records = forward.main([*words, "--out", str(tmp_path)])
    assert written(tmp_path / "forward.jsonl") == json.loads(json.dumps(records))
    assert [record["contestant"] for record in records] == ["jaxmodels", "PyTorch eager"]
    assert 0 < records[1]["difference"] < 1e-5
    assert "dinov2:tiny 56 px" in capsys.readouterr().out


def test_contestants_that_see_other_features_are_an_error(tmp_path, monkeypatch):
    honest = forward.theirs

    def wrong(*args):
        call = honest(*args)
        return lambda index: 2 * call(index)

    monkeypatch.setattr(forward, "theirs", wrong)
    words = ["--preset", "dinov2:tiny", "--side", "56", "--rounds", "1", "--no-compile"]
    with pytest.raises(Problem, match="different features"):
        forward.main([*words, "--out", str(tmp_path)])
    assert not (tmp_path / "forward.jsonl").exists()


@pytest.mark.slow
def test_data(tmp_path, capsys):
    records = data.main([*data.QUICK[0], "--images", "0", "--out", str(tmp_path)])
    assert written(tmp_path / "data.jsonl") == json.loads(json.dumps(records))
    cases = list(dict.fromkeys(record["case"] for record in records))
    assert len(cases) == 3
    assert min(record["tokens_per_second"] for record in records) > 0
    assert "nanoGPT" in capsys.readouterr().out


def test_contestants_that_make_other_tokens_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "our_encoding", lambda text: lambda index: len(text))
    with pytest.raises(Problem, match="different numbers of tokens"):
        data.main([*data.QUICK[0], "--images", "0", "--out", str(tmp_path)])


def test_pieces_that_tiktoken_takes_give_the_same_tokens():
    text = "some words, 12 numbers\n\n  and space " * 40_000
    pieces = data._pieces(text)
    assert len(pieces) > 1
    assert "".join(pieces) == text
    assert data.tiktoken_encoding(pieces, 2)(0) == data.our_encoding(text)(0)


@pytest.mark.slow
def test_ternary(tmp_path, capsys):
    words = ["--inward", "32", "--outward", "48", "--rows", "2", "--rounds", "1", "--no-compile"]
    records = ternary.main([*words, "--out", str(tmp_path)])
    names = ["jaxmodels", "jaxmodels, as trained", "transformers BitLinear"]
    assert [record["contestant"] for record in records] == [*names, "transformers AutoBitLinear"]
    assert all(record["difference"] < ternary.MAX_ERROR for record in records)
    assert "A ternary layer of 32 × 48, 2 rows" in capsys.readouterr().out
    lines = (tmp_path / "ternary.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(records))


@pytest.mark.slow
def test_ternary_layers_that_differ_are_no_race(tmp_path, monkeypatch):
    words = ["--inward", "32", "--outward", "48", "--rows", "2", "--rounds", "1", "--no-compile"]
    monkeypatch.setattr(ternary, "MAX_ERROR", -1.0)
    with pytest.raises(Problem, match="different outputs"):
        ternary.main([*words, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_quality(tmp_path, capsys):
    words = ["--preset", "charlm:tiny", "--steps", "3", "--out", str(tmp_path)]
    (record,) = quality.main(words)
    assert json.loads((tmp_path / "quality.jsonl").read_text()) == json.loads(json.dumps(record))
    assert record["bits_per_token"] == pytest.approx(record["median"] / 0.6931472)
    assert 3 < record["median"] < 5
    assert f"{record['median']:.4f} after 3 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_memory(tmp_path, capsys, monkeypatch):
    words = ["--preset", "bwetaf:tiny", "--batch", "2", "--out", str(tmp_path)]
    records = memory.main(words)
    assert [record["contestant"] for record in records] == list(memory.FORMS)
    # Shorter than a chunk, tiny is the same program in every form.
    assert len({record["compiled_bytes"] for record in records}) == 1
    assert len({record["first_loss"] for record in records}) == 1
    assert all(record["peak_bytes"] > 0 for record in records)
    assert "bwetaf:tiny" in capsys.readouterr().out
    lines = (tmp_path / "memory.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(records))


@pytest.mark.slow
def test_resident_memory_of_a_packed_model(tmp_path, capsys):
    """Measured while the model is held. What comes with each parameter outweighs so few weights, so
    that packed is not less here."""
    records = memory.main(["--preset", "bitgen:tiny", "--packed", "--out", str(tmp_path)])
    held = {record["contestant"]: record for record in records}
    assert list(held) == list(resident.CONTESTANTS)
    assert all(r["share_of_file"] == r["median"] / r["file_bytes"] for r in records)
    packed, large = (held[f"jaxmodels, {form}"] for form in ("packed", "float32"))
    assert packed["file_bytes"] < large["file_bytes"] / 2
    assert all(record["median"] > record["file_bytes"] / 2 for record in records)
    assert "### Resident memory of bitgen:tiny" in capsys.readouterr().out


@pytest.mark.slow
def test_chunks_take_less_memory_than_whole_logits_and_scores():
    _, _, config = jaxmodels.preset("bwetaf:tiny")
    recipe = replace(jaxmodels.arch("bwetaf").RECIPES["tiny"], batch=8, slices=1)
    config = replace(config, vocab=20_000, tokens=20_000, context=512)
    chunks, logits, scores = (
        memory.compiled_bytes("bwetaf", config, recipe, name) for name in memory.FORMS
    )
    assert chunks < logits / 2
    assert logits < scores


@pytest.mark.slow
def test_sizes_on_disk(tmp_path, capsys):
    words = ["--preset", "bitgen:tiny", "--to", "packed", "--rounds", "1", "--out", str(tmp_path)]
    (record,) = bridge.main(words)
    assert record["case"] == "bitgen:tiny, to packed"
    assert 0 < record["written_bytes"] < record["file_bytes"] / 2
    assert "| bytes written |" in capsys.readouterr().out


@pytest.mark.slow
def test_bridge(tmp_path, capsys):
    words = ["--preset", "wigip:tiny", "--rounds", "1", "--out", str(tmp_path)]
    records = bridge.main([*words, "--work", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "bridge.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(records))
    assert [record["contestant"] for record in records] == list(bridge.CONTESTANTS)
    copied = next(record for record in records if record["contestant"] == "file copy")
    assert copied["share_of_copy_speed"] == 1
    assert all(r["peak_bytes"] > r["largest_tensor_bytes"] > 0 for r in records)
    assert [path.name for path in tmp_path.iterdir()] == ["bridge.jsonl"]
    assert "| naive torch script |" in capsys.readouterr().out
