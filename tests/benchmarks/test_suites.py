"""The suites on tiny sizes: they run, agree on numbers and write whole records. No timing."""

import json
from dataclasses import replace

import pytest

import jaxmodels
from benchmarks import bridge, decode, flops, memory, peers, step
from jaxmodels.errors import USAGE, Problem

FIELDS = {
    "suite",
    "case",
    "contestant",
    "unit",
    "median",
    "min",
    "max",
    "first",
    "rounds",
    "times_as_fast_as",
    "tokens_per_second",
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
    assert all(set(line) >= FIELDS for line in lines)
    return lines


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
    assert set(records[0]["times_as_fast_as"]) == set(names[1:])
    assert "| PyTorch eager |" in capsys.readouterr().out


def _gflop():
    """By hand: tiny has dim 32, hidden 64, 2 layers, vocabulary 64; 128 × 32 tokens."""
    d, f, v, t = 32, 64, 64, 32
    token = 2 * (2 * (3 * d * d + d * d + 2 * d * f + f * d) + d * v) + 2 * 4 * t * d
    return 3 * token * 128 * t / 1e9


WORDS = ["--presets", "charlm:tiny", "--batches", "2", "--prompt", "4", "--new", "40"]


def test_decode(tmp_path, capsys):
    records = decode.main([*WORDS, "--rounds", "2", "--out", str(tmp_path)])
    assert written(tmp_path / "decode.jsonl") == json.loads(json.dumps(records))
    names = ["jaxmodels", "transformers generate", "PyTorch loop"]
    assert [record["contestant"] for record in records] == names * 2
    greedy, sampled = records[:3], records[3:]
    assert min(record["greedy_tokens_agreed"] for record in greedy) >= decode.AGREE
    assert all("greedy_tokens_agreed" not in record for record in sampled)
    assert "charlm:tiny batch 2 sampled" in capsys.readouterr().out


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


def test_chunks_take_less_memory_than_whole_logits_and_scores():
    _, _, config = jaxmodels.preset("bwetaf:tiny")
    recipe = replace(jaxmodels.arch("bwetaf").RECIPES["tiny"], batch=8, slices=1)
    config = replace(config, vocab=20_000, tokens=20_000, context=512)
    chunks, logits, scores = (
        memory.compiled_bytes("bwetaf", config, recipe, name) for name in memory.FORMS
    )
    assert chunks < logits / 2
    assert logits < scores


def test_the_seeds_package_must_be_there(tmp_path):
    words = ["--preset", "bwetaf:tiny", "--batch", "2", "--rounds", "1", "--no-compile"]
    with pytest.raises(Problem, match="package is not there") as caught:
        step.main([*words, "--seed-package", str(tmp_path), "--out", str(tmp_path)])
    assert caught.value.exit_code == USAGE


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
