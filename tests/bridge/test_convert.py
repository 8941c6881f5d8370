import json
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest

import bridge
from bridge.core.tensors import DTYPES, digest_of
from bridge.storage.orbax import read_tree
from jaxmodels.errors import EXISTS, MISMATCH, NO_SPACE, UNVERIFIED, USAGE, Problem
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.paths import flatten, params_of
from tests.bridge.helpers import HEADS, SEED, assert_same_params, random_params, vocabulary


def refused(exit_code, *args, **options):
    with pytest.raises(Problem) as caught:
        bridge.convert(*args, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


def test_model_directory_comes_back_bit_exact(converted):
    assert_same_params(bridge.load(converted), params_of(bridge.load(SEED, config=HEADS)))
    assert bridge.load(converted).config.heads == 4
    assert not damage(converted)


def test_seed_to_jax_to_seed_is_bit_exact(converted, tmp_path):
    bridge.convert(converted, tmp_path / "seed", to="orbax", verify="roundtrip")
    before, after = read_tree(SEED)[0], read_tree(tmp_path / "seed")[0]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.shape, tensor.dtype) == (after[name].shape, after[name].dtype)
        assert digest_of(tensor.read()) == digest_of(after[name].read())
    assert bridge.load(tmp_path / "seed").config.heads == 4


def test_an_orbax_folder_opens_with_orbax_and_is_written_array_by_array(
    converted, tmp_path, monkeypatch
):
    import orbax.checkpoint as ocp

    alive, most = set(), 0
    real = np.ascontiguousarray

    class Watched(np.ndarray):
        def __array_finalize__(self, other):
            nonlocal most
            if other is None or isinstance(other, Watched):
                return
            alive.add(id(self))
            weakref.finalize(self, alive.discard, id(self))
            most = max(most, len(alive))

    monkeypatch.setattr(
        "bridge.storage.orbax.np.ascontiguousarray", lambda array: real(array).view(Watched)
    )
    bridge.convert(converted, tmp_path / "out", to="orbax")
    assert 1 <= most <= 2
    before = {name.replace(".", "/"): t.read() for name, t in read_tree(SEED)[0].items()}
    for reader in (ocp.StandardCheckpointer(), ocp.PyTreeCheckpointer()):
        tree = flatten(reader.restore(tmp_path / "out"))
        assert tree.keys() == before.keys()
        for name, array in tree.items():
            np.testing.assert_array_equal(np.asarray(array), before[name])


def test_files_of_a_model_directory(run, model_directory):
    names = {path.name for path in model_directory.iterdir()}
    assert names == {
        "README.md", "characters.json", "config.json", "generation_config.json", "manifest.json",
        "model.safetensors", "modeling_charlm.py", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((model_directory / "config.json").read_text())
    assert (config["arch"], config["preset"], config["vocab"]) == ("charlm", "tiny", 64)
    assert (config["model_type"], config["vocab_size"]) == ("charlm", 64)
    characters = model_directory / "characters.json"
    assert json.loads(characters.read_text()) == json.loads((run / "characters.json").read_text())
    manifest = json.loads((model_directory / "manifest.json").read_text())
    assert manifest["source"]["step"] == 200
    assert manifest["tensors"]["head.weight"]["shape"] == [64, 32]
    assert manifest["files"].keys() == names - {"manifest.json"}
    card = (model_directory / "README.md").read_text()
    assert "step 200, valid_loss 1.5000" in card
    assert "vocabulary is missing" not in card
    assert_same_params(bridge.load(model_directory), random_params(seed=200))


def test_a_missing_vocabulary_is_said_and_can_be_given(converted, tmp_path):
    assert "vocabulary is missing" in (converted / "README.md").read_text()
    assert not bridge.inspect(converted).vocab_present
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(vocabulary(53)))
    report = bridge.convert(converted, tmp_path / "with", vocab=file)
    assert report.vocab_present
    assert bridge.inspect(tmp_path / "with").vocab_present
    file.write_text(json.dumps(vocabulary(54)))
    assert "54 entries, the model 53" in refused(
        MISMATCH, converted, tmp_path / "wrong", vocab=file
    )
    assert not (tmp_path / "wrong").exists()


def test_shards(run, tmp_path):
    report = bridge.convert(run, tmp_path / "out", max_shard_size="20KB", verify="roundtrip")
    assert len(report.files) > 2
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert_same_params(bridge.load(tmp_path / "out"), random_params(seed=200))


@pytest.mark.slow
def test_dtypes_and_what_stays_in_float32(run, tmp_path):
    report = bridge.convert(
        run, tmp_path / "out", dtype="bfloat16", keep_fp32=["*/norm?/*", "norm/*"], verify="logits"
    )
    source = bridge.open_checkpoint(tmp_path / "out")
    for path, tensor in source.tensors.items():
        assert tensor.dtype == DTYPES["F32" if "norm" in path else "BF16"]
        want = random_params(seed=200)[path].astype(tensor.dtype)
        np.testing.assert_array_equal(tensor.read(), want)
    assert 0 < report.max_rounding_error < 0.01
    assert bridge.verify(tmp_path / "out", against=run).ok


def test_values_that_do_not_fit_the_dtype(tmp_path):
    from tests.bridge.helpers import save_tree

    params = random_params()
    params["head/bias"][3] = 1e30
    save_tree(tmp_path / "own", params)
    told = refused(
        MISMATCH, tmp_path / "own", tmp_path / "out", config={"heads": 2}, dtype="float16"
    )
    assert "head.bias has" in told or "head/bias has" in told
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(tmp_path):
    report = bridge.convert(SEED, tmp_path / "out", config=HEADS, dry_run=True)
    assert not list(tmp_path.iterdir())
    row = next(row for row in report.plan if row["to"] == "head.weight")
    assert row == {
        "from": "head.layers.1.kernel", "to": "head.weight", "op": "transpose",
        "dtype": "float32", "shape": [53, 32], "shard": "model.safetensors", "bytes": 6784,
    }  # fmt: skip
    assert report.bytes == sum(row["bytes"] for row in report.plan)


def test_what_exists_is_untouched(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    assert "exists" in refused(EXISTS, SEED, target, config=HEADS)
    said = refused(EXISTS, SEED, target, config=HEADS, force=True)
    assert "holds something that `convert` did not write" in said
    assert [path.name for path in target.iterdir()] == ["precious.txt"]


def test_force_replaces_an_earlier_output(converted, run, tmp_path):
    target = shutil.copytree(converted, tmp_path / "out")
    bridge.convert(run, target, force=True)
    assert_same_params(bridge.load(target), random_params(seed=200))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_source_is_never_replaced(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    for target in (copy, tmp_path):
        refused(USAGE, copy, target, force=True)
    assert bridge.open_checkpoint(copy).origin["step"] == 200


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    told = refused(NO_SPACE, SEED, tmp_path / "out", config=HEADS)
    assert "1,000 are free" in told
    assert not list(tmp_path.iterdir())


# Orbax has a file for each array.
@pytest.mark.slow
@pytest.mark.parametrize(("to", "room"), [("safetensors", 50_000), ("orbax", 5_000)])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, to, room):
    code = f"""
import resource, signal, sys
sys.dont_write_bytecode = True  # a cut .pyc would fail whatever is imported after this
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
from jaxmodels.__main__ import main
sys.exit(main(["convert", {str(SEED)!r}, {str(tmp_path / "out")!r}, "--set", "heads=4",
               "--to", {to!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == NO_SPACE, done.stderr
    assert "disk is full" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_that_comes_out_wrong_does_not_appear(tmp_path, monkeypatch):
    from bridge.conversion.readback import CHECKS
    from bridge.core.ops import OPS, Op

    one_way = Op(OPS["transpose"].forward, lambda x: np.roll(x.T, 1))
    monkeypatch.setitem(OPS, "transpose", one_way)
    assert CHECKS[2] == "roundtrip"
    told = refused(UNVERIFIED, SEED, tmp_path / "out", config=HEADS, verify="roundtrip")
    assert "head/kernel does not come back" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"to": "keras"}, {"verify": "all"}, {"dtype": "int4"}])
def test_unknown_choices(tmp_path, option):
    assert "known:" in refused(USAGE, SEED, tmp_path / "out", config=HEADS, **option)


@pytest.mark.slow
def test_names_are_functions_whatever_is_imported_first():
    code = """
import bridge, bridge.conversion.convert, bridge.checks.inspection
import bridge.checks.verification, bridge.checks.difference
for name in ("convert", "inspect", "verify", "diff", "load", "open_checkpoint"):
    assert callable(getattr(bridge, name)), name
import sys
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert callable(bridge.torch.load)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_appears_during_a_conversion_stays(tmp_path, monkeypatch):
    from bridge.conversion import convert

    def late(*_):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("dear")

    monkeypatch.setattr(convert, "check_written", late)
    told = refused(EXISTS, SEED, tmp_path / "out", config=HEADS)
    assert "exists already" in told
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]
