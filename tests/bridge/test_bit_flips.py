"""One flipped bit in any file of a model directory or a run directory is found and named."""

import hashlib
import json
import random
import shutil

import pytest

import bridge
from bridge.core.tensors import DIGEST, raw
from bridge.storage.safetensors_reader import read_file
from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, UNVERIFIED, Problem
from jaxmodels.files import files_below
from jaxmodels.runtime.manifest import damage, write_manifest
from tests.bridge.helpers import command, flip

FLIPS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory of `train`; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
    words = ["train", "charlm:tiny", "--data", f"text:{folder / 'text'}", "--out", folder / "run"]
    assert main([str(word) for word in [*words, "--steps", "2", "--batch", "2"]]) == DONE
    return folder / "run"


def places(folder, rng):
    """FLIPS places (file, byte, bit): every file at least once, large ones more often.

    Not the lock, which says who trains a run and is no part of it.
    """
    files = [path for path in files_below(folder) if path.stat().st_size and path.name != ".lock"]
    weights = [path.stat().st_size for path in files]
    chosen = files + rng.choices(files, weights, k=FLIPS - len(files))
    assert len(chosen) == FLIPS
    return [(path, rng.randrange(path.stat().st_size), rng.randrange(8)) for path in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model_directory", "trained"])
def test_any_flipped_bit_is_found(name, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / "copy")
    assert bridge.verify(folder).ok
    found = 0
    for path, at, bit in places(folder, random.Random(0)):
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        report = bridge.verify(folder)
        named = any(path.name in problem for problem in report.problems)
        found += not report.ok and report.digests_ok is False and named
        path.write_bytes(whole)
    assert found == FLIPS
    assert bridge.verify(folder).ok


def test_every_bit_of_a_manifest_counts(model_directory, tmp_path):
    folder = shutil.copytree(model_directory, tmp_path / "copy")
    path = folder / "manifest.json"
    whole = path.read_bytes()
    tail = [(at, bit) for at in range(len(whole) - 90, len(whole)) for bit in range(8)]
    for at, bit in [*((at, at % 8) for at in range(0, len(whole), 97)), *tail]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        assert "manifest.json is damaged" in damage(folder)[0], (at, bit)


def test_a_manifest_with_sha256_of_its_tensors(model_directory, tmp_path):
    folder = shutil.copytree(model_directory, tmp_path / "copy")
    file = folder / "model.safetensors"
    said = json.loads((folder / "manifest.json").read_text())
    for name, tensor in read_file(file).items():
        digest = hashlib.sha256(raw(tensor.read()).data).hexdigest()
        said["tensors"][name] = {**said["tensors"][name], "sha256": digest}
        del said["tensors"][name][DIGEST]
    del said["seal"]
    (folder / "manifest.json").write_text(json.dumps(said))
    assert bridge.load(folder).config
    flip(file)
    with pytest.raises(Problem, match="is damaged") as caught:
        bridge.load(folder)
    assert "sha256" in caught.value.why


def test_a_manifest_from_before_there_were_seals(model_directory, tmp_path):
    folder = shutil.copytree(model_directory, tmp_path / "copy")
    said = json.loads((folder / "manifest.json").read_text())
    del said["seal"]
    (folder / "manifest.json").write_text(json.dumps({**said, "tool": said["tool"]}))
    assert bridge.verify(folder).ok
    flip(folder / "config.json")
    assert not bridge.verify(folder).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notes.txt", "data/more.bin", "samples/x", "checkpoints/2/more"])
def test_files_that_a_run_does_not_list(trained, tmp_path, name, capsys):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("stray")
    code, report, _ = command(capsys, "verify", folder, "--json")
    assert (code, report["digests_ok"]) == (UNVERIFIED, False)
    assert "is not in the manifest" in report["problems"][0]
    assert report["problems"][0].split(" is not")[0].endswith(name.split("/")[-1])


@pytest.mark.parametrize("name", ["metrics.jsonl", "data/tokens.bin", "config.json"])
def test_files_that_a_run_lost(trained, tmp_path, name):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / name).unlink()
    assert any(f"{name} is missing" in problem for problem in bridge.verify(folder).problems)


@pytest.mark.slow
def test_a_run_that_goes_on_is_sealed_anew(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    assert main(["train", "--out", str(folder), "--steps", "3"]) == DONE
    assert bridge.verify(folder).ok


def test_of_a_run_that_was_killed_the_checkpoints_are_checked(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "digests.json").unlink()
    (folder / "metrics.jsonl").write_text("{}")
    report = bridge.verify(folder)
    assert report.ok
    assert "only the checkpoints" in report.notes[0]
    flip(folder / "checkpoints" / "2" / "params" / "_METADATA")
    assert not bridge.verify(folder).ok


def test_a_stale_shard_is_found_with_and_without_manifest(model_directory, tmp_path):
    shards = tmp_path / "shards"
    bridge.convert(model_directory, shards, max_shard_size="40KB")
    names = sorted(path.name for path in shards.glob("model-*.safetensors"))
    assert len(names) > 1
    shutil.copyfile(model_directory / "model.safetensors", shards / "model.safetensors")
    assert "model.safetensors is not in the manifest" in bridge.verify(shards).problems
    (shards / "manifest.json").unlink()
    report = bridge.verify(shards)
    assert not report.ok
    assert "model.safetensors" in report.problems[0]


@pytest.mark.parametrize("manifest", [True, False])
def test_shards_that_disagree_with_the_index(model_directory, tmp_path, manifest):
    shards = tmp_path / "shards"
    bridge.convert(model_directory, shards, max_shard_size="40KB")
    first, second, *_ = sorted(shards.glob("model-*.safetensors"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    (shards / "manifest.json").unlink()
    if manifest:  # one that was made of the wrong files
        write_manifest(shards, {"tensors": {}})
    report = bridge.verify(shards)
    assert not report.ok
    assert "the shards do not hold what the index says" in report.problems[0]
