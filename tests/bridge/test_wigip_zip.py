"""Reading wigip's step_N.zip: any pickle protocol, the newest of several, damaged files."""

import gzip
import os
import pickle
import shutil
import stat
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict

import bridge
from bridge import sandbox
from bridge.formats import recognise
from bridge.legacy import inflate
from data_pipelines.tokenizers import CharTokenizer
from jaxmodels.errors import CORRUPT, MISMATCH, UNSAFE, Problem
from tests.bridge.helpers import command, flip, read_here
from tests.bridge.zips import GOLDEN, STATE, ZIP, packed, plain_blocks, resaved, unpacked


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code, (caught.value.what, caught.value.why)
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


@pytest.fixture(scope="module")
def golden_tensors():
    return {name: tensor.read() for name, tensor in recognise(ZIP).tensors.items()}


def assert_golden(path, golden_tensors):
    tensors = recognise(path).tensors
    assert tensors.keys() == golden_tensors.keys()
    for name, array in golden_tensors.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[name].read(), array)


@pytest.mark.slow
def test_golden_logits():
    model, golden = bridge.load(ZIP), np.load(GOLDEN / "io.npz")
    logits, _ = model(jnp.asarray(golden["ids"]))
    assert np.abs(np.asarray(logits) - golden["logits"]).max() <= 2e-5
    layers, dim, heads, side, patch, vocab = golden["cfg"].tolist()
    config = model.config
    assert (config.layers, config.dim, config.heads) == (layers, dim, heads)
    assert (config.side, config.patch, config.vocab) == (side, patch, vocab)


def test_inspect_tells_what_it_is():
    report = bridge.inspect(ZIP)
    assert (report.format, report.arch, report.tensors) == ("wigip-zip", "wigip", 40)
    assert (report.problems, report.vocab_present, report.optimizer) == ([], False, False)
    assert report.config["heads"] == 2
    assert "heads" not in report.assumed
    assert any("no vocabulary" in note for note in report.notes)
    assert any("the optimiser has no moments" in note for note in report.notes)
    assert bridge.open_checkpoint(ZIP).origin["step"] == 7


def test_blocks_without_rematerialisation(tmp_path, golden_tensors):
    path = resaved(tmp_path / "x.zip", plain_blocks)
    assert_golden(path, golden_tensors)
    bridge.convert(path, tmp_path / "between")
    bridge.convert(tmp_path / "between", tmp_path / "out", to="wigip-zip", verify="roundtrip")
    assert sorted(unpacked(tmp_path / "out" / "step_7.zip")) == sorted(unpacked(path))
    assert "params/AttentionBlock_1.pkl.gz" in unpacked(path)


def test_both_names_of_blocks_are_no_model(tmp_path):
    path = resaved(tmp_path / "x.zip", lambda values: values | plain_blocks(values))
    assert "AttentionBlock_0.Dense_0.bias" in refused(MISMATCH, bridge.open_checkpoint, path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("library", ["numpy", "old numpy", "jax", "frozen"])
def test_however_it_was_pickled(tmp_path, golden_tensors, protocol, library):
    makes = {"jax": lambda x: jax.tree.map(jnp.asarray, x), "frozen": frozen}
    make = makes.get(library, lambda x: jax.tree.map(np.asarray, x))
    path = resaved(tmp_path / "x.zip", lambda v: {k: make(x) for k, x in v.items()}, protocol)
    if library == "old numpy":
        path = packed(path, {name: as_old_numpy(data) for name, data in unpacked(path).items()})
        assert not any(b"numpy._core" in data for data in unpacked(path).values())
    assert_golden(path, golden_tensors)
    assert recognise(path).origin["step"] == 7


def frozen(value):
    return FrozenDict(value) if isinstance(value, dict) and "step" not in value else value


def as_old_numpy(data):
    """The names of modules before numpy 2; a frame's length need not be right to be read here."""
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
        data = data.replace(b"c" + new, b"c" + old)
    return data


DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint32 bool".split()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_dtypes_and_layouts(tmp_path, protocol):
    base = np.arange(24).reshape(2, 3, 4)
    arrays = {name: base.astype(getattr(ml_dtypes, name, name)) for name in DTYPES}
    arrays |= {
        "fortran": np.asfortranarray(base.astype("f4")),
        "view": base.astype("f4")[:, ::2, ::-1],
        "empty": np.zeros((0, 3), "f4"),
        "scalar": np.float32(2.5),
        "nothing": np.asarray(1.5, "f4"),
        "bf16": ml_dtypes.bfloat16(1.5),
    }
    path = resaved(tmp_path / "x.zip", lambda v: v | {"params/x.pkl.gz": arrays}, protocol)
    tensors = recognise(path).tensors
    for name, array in arrays.items():
        tensor = tensors[f"x.{name}"]
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensor.read(), array)
    big = resaved(tmp_path / "x.zip", lambda v: v | {"params/x.pkl.gz": {"a": base.astype(">f4")}})
    tensor = recognise(big).tensors["x.a"]
    assert tensor.dtype == np.dtype("<f4")
    assert tensor.read().dtype == tensor.dtype
    np.testing.assert_array_equal(tensor.read(), base)


def test_opening_reads_no_large_array(tmp_path, monkeypatch):
    monkeypatch.setattr(inflate, "SMALL", 1000)
    monkeypatch.setattr(sandbox, "read", read_here)

    def never(span):
        raise AssertionError("read")

    with monkeypatch.context() as patch:
        patch.setattr(inflate.Span, "read", never)
        source = bridge.open_checkpoint(ZIP)
    kernel = source.tensors["head/kernel"].read()
    expected = pickle.loads(unpacked(ZIP)["params/Dense_0.pkl.gz"])["kernel"]
    np.testing.assert_array_equal(kernel, expected)


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints; the clock says that the first is the newest."""
    (tmp_path / "runs").mkdir()
    for step in (70, 9, 100):
        path = resaved(
            tmp_path / "runs" / f"step_{step}.zip",
            lambda v: v | {STATE: v[STATE] | {"step": jnp.asarray(step)}},  # noqa: B023
        )
        os.utime(path, (2e9 - step, 2e9 - step))
    (tmp_path / "runs" / "step_200.zip.part").write_bytes(b"")
    (tmp_path / "runs" / "notes.txt").write_text("hello")
    return tmp_path / "runs"


def test_the_newest_of_a_folder_by_step(folder):
    source = bridge.open_checkpoint(folder)
    assert (source.format, source.origin["step"]) == ("wigip-zip", 100)
    assert "using step_100.zip, the newest of 3" in source.notes
    assert bridge.open_checkpoint(folder / "step_9.zip").origin["step"] == 9


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_newest_is_named(folder, damage, capsys):
    path = folder / "step_100.zip"
    data = path.read_bytes()
    if damage == "flipped":
        flip(path, 0.5)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    told = refused(CORRUPT, bridge.open_checkpoint, folder)
    assert "step_100.zip" in told
    assert "newest of 3; give an older one: step_70.zip, step_9.zip" in told
    code, out, err = command(capsys, "inspect", folder, "--json")
    assert (code, out["format"], out["damaged"]) == (CORRUPT, "wigip-zip", True)
    assert "Traceback" not in err


def test_the_vocabulary_lies_beside_it(folder, tmp_path):
    size = bridge.open_checkpoint(folder).config.vocab
    letters = "".join(map(chr, range(65, 65 + size)))
    CharTokenizer.build([letters]).save(tmp_path)
    told = refused(MISMATCH, bridge.convert, folder, tmp_path / "no", vocab=tmp_path)
    assert f"{size + 2} entries, the model {size}" in told
    CharTokenizer.build([letters[:-2]]).save(folder)
    report = bridge.inspect(folder)
    assert report.vocab_present
    bridge.convert(folder, tmp_path / "out", to="wigip-zip")
    assert bridge.open_checkpoint(tmp_path / "out").tokenizer.vocab_size == size


def test_without_a_vocabulary_it_says_so(tmp_path, capsys):
    code, _, err = command(capsys, "convert", ZIP, tmp_path / "out")
    assert code == 0, err
    assert "The vocabulary is missing" in (tmp_path / "out" / "README.md").read_text()
    for path in (ZIP, tmp_path / "out"):
        code, _, err = command(capsys, "generate", path, "--prompt", "a")
        assert code == MISMATCH
        assert "--vocab" in err
    assert command(capsys, "inspect", ZIP, "--json")[1]["vocab_present"] is False


def test_strangers_and_other_numbers_are_noted(tmp_path):
    path = tmp_path / "step_8.zip"
    shutil.copyfile(ZIP, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.md", "hello")
        archive.writestr("params/deeper/x.pkl.gz", "hello")
    notes = recognise(path).notes
    assert "the file is called step_8.zip, and holds step 7" in notes
    assert "left aside: README.md" in notes
    assert "left aside: params/deeper/x.pkl.gz" in notes


def test_a_missing_parameter_and_a_missing_state(tmp_path):
    pickles = unpacked(ZIP)
    lacking = {name: data for name, data in pickles.items() if "LayerNorm_0" not in name}
    told = refused(MISMATCH, bridge.open_checkpoint, packed(tmp_path / "x.zip", lacking))
    assert "LayerNorm_0.scale" in told
    del pickles[STATE]
    refused(CORRUPT, bridge.open_checkpoint, packed(tmp_path / "x.zip", pickles))


def _link(archive):
    info = zipfile.ZipInfo("params/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


HOSTILE = {
    "leads outside": lambda archive: archive.writestr("../x", b""),
    "a name twice": lambda archive: archive.writestr("PARAMS/POS_EMB.pkl.gz", b""),
    "a link or device": _link,
    "too many members": lambda archive: [archive.writestr(f"{n}", b"") for n in range(10_000)],
    "unpacks to far more": lambda archive: archive.writestr(
        "params/x.pkl.gz", gzip.compress(pickle.dumps(bytes(300_000_000)), 1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_a_zip_built_to_mislead_is_refused_by_the_command(tmp_path, what, capsys):
    path = tmp_path / "in" / "step_7.zip"
    path.parent.mkdir()
    shutil.copy(ZIP, path)
    with zipfile.ZipFile(path, "a") as archive:
        HOSTILE[what](archive)
    # A folder is not known by a zip whose list is too long to be read.
    sources = [path] if what == "too many members" else [path, path.parent]
    for source in sources:
        code, _, err = command(capsys, "convert", source, tmp_path / "out")
        assert (code, what in err) == (UNSAFE, True), err
    assert command(capsys, "inspect", path)[0] == UNSAFE
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("part", range(0, 100, 9))
def test_cut_anywhere(tmp_path, part, capsys):
    data = ZIP.read_bytes()
    (tmp_path / "x.zip").write_bytes(data[: len(data) * part // 100])
    code, _, err = command(capsys, "convert", tmp_path / "x.zip", tmp_path / "out")
    assert code == CORRUPT
    assert "Traceback" not in err
    assert part == 0 or "damaged" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_is_found(tmp_path, seed, golden_tensors):
    data = bytearray(ZIP.read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    (tmp_path / "x.zip").write_bytes(data)
    try:
        bridge.open_checkpoint(tmp_path / "x.zip")
    except Problem as problem:
        codes = {problem.exit_code}
    else:  # in a time or another word of no meaning
        assert_golden(tmp_path / "x.zip", golden_tensors)
        codes = set()
    assert codes <= {CORRUPT, 4, MISMATCH}
