"""Packed model directories: 2- and 8-bit matrices, used without unpacking, without loss."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.conversion.plan import make_plan
from bridge.core import packing
from bridge.core.state import state_shapes
from bridge.core.tensors import Tensor
from bridge.formats import target
from data_pipelines.words import build_words
from jaxmodels.bitgen import bitlinear
from jaxmodels.errors import CORRUPT, USAGE, Problem
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline, parameter_shapes
from tests.bridge.helpers import command
from tests.contract import smallest

# Rows of 30 · 3 are no multiple of four.
CONFIG = replace(smallest("bitgen"), dim=30, heads=2, hidden=42, slots=4, queue=4, vocab=50)
TERNARY, INT8, FLOAT = "text/0/attn/qkv/kernel", "vision/blocks/0/mlp/fc1/kernel", "match/kernel"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of random numbers as a model directory, and packed."""
    folder = tmp_path_factory.mktemp("packed")
    graphdef, params, rest = split(outline(jaxmodels.arch("bitgen"), CONFIG))
    rng = np.random.default_rng(0)
    params = {
        p: jnp.asarray(rng.standard_normal(x.shape) * 0.2, x.dtype) for p, x in params.items()
    }
    state = {p: jnp.asarray(rng.random(x.shape) * 2, x.dtype) for p, x in rest.items()}
    bridge.save(graphdef.merge(params, state), folder / "bare")
    words = build_words([" ".join(f"word{i}" for i in range(48))])
    words.save(folder)
    bridge.convert(folder / "bare", folder / "float", vocab=folder / "tokenizer.json")
    bridge.convert(folder / "float", folder / "packed", to="packed", verify="roundtrip")
    return folder


def tensors(path):
    return {p: tensor.read() for p, tensor in bridge.open_checkpoint(path).tensors.items()}


def test_only_what_is_to_be_is_rounded(folders):
    before, after = tensors(folders / "float"), tensors(folders / "packed")
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    kinds = {path: packing.kind_of("bitgen", path) for path in before}
    assert changed == {path for path, kind in kinds.items() if kind}
    assert {TERNARY, INT8, "vision/pos", "embed/embedding", "vision/patch/kernel"} <= changed
    assert not any("norm" in p or p.startswith(("memory", "queue")) for p in changed)


def test_float32_to_packed_to_float32_gives_the_rounded_weights(folders, tmp_path):
    bridge.convert(folders / "packed", tmp_path / "float", verify="roundtrip")
    exact, back = tensors(folders / "float"), tensors(tmp_path / "float")
    for path, array in back.items():
        kind = packing.kind_of("bitgen", path)
        if kind == "ternary":
            signs, gamma = bitlinear.ternary(jnp.asarray(exact[path]))
            np.testing.assert_array_equal(array, signs * gamma, err_msg=path)
            again, same = bitlinear.ternary(jnp.asarray(array))
            np.testing.assert_array_equal(again, signs)
            np.testing.assert_allclose(same, gamma, rtol=2e-7)
        elif kind == "int8":
            axis = tuple(range(array.ndim - 1)) if path.endswith("kernel") else -1
            scale = np.abs(exact[path]).max(axis=axis, keepdims=True) / np.float32(127)
            np.testing.assert_array_equal(array, np.rint(exact[path] / scale) * scale, err_msg=path)
        else:
            np.testing.assert_array_equal(array, exact[path])
    bridge.convert(tmp_path / "float", tmp_path / "again", to="packed")
    assert tensors(tmp_path / "again")[TERNARY].tobytes() == back[TERNARY].tobytes()


def test_packed_to_packed_is_bit_equal(folders, tmp_path):
    report = bridge.convert(folders / "packed", tmp_path / "again", to="packed")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folders / "packed" / name).read_bytes()
    assert report.format == "packed"
    model = bridge.load(folders / "packed")
    bridge.save(model, tmp_path / "saved")
    assert (tmp_path / "saved/model.safetensors").read_bytes() == (
        folders / "packed/model.safetensors"
    ).read_bytes()


def test_it_stays_packed_in_memory_and_gives_the_numbers_of_the_rounded_weights(folders, tmp_path):
    packed = bridge.load(folders / "packed")
    _, params, rest = split(packed)
    held = sum(x.nbytes for x in [*params.values(), *rest.values()])
    size = (folders / "packed/model.safetensors").stat().st_size
    assert held <= 1.3 * size
    assert not any(path in params for path in (TERNARY, INT8, "embed/embedding"))
    bridge.convert(folders / "packed", tmp_path / "float")
    rounded = bridge.load(tmp_path / "float")
    pairs = [
        (model.text[0].attn.qkv, model.decoder.blocks[0].mlp.up) for model in (packed, rounded)
    ]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, CONFIG.dim)), jnp.float32)
    for ours, theirs in zip(*pairs, strict=True):
        np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(*map(parts, (packed, rounded)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def parts(model):
    """What the model reads of its int8 parameters, in all the ways that it reads them."""
    ids = jnp.asarray([[3, 0], [3, 7]])
    tower = model.vision
    yield from (model.embed.embedding[...], model.embed.embedding[...][ids], model.pos.embedding[1])
    yield from (tower.pos[0], tower.pos[1:], tower.patch.kernel[...])
    yield tower.blocks[0].attn.q.kernel[...]


@pytest.mark.slow
def test_the_pytorch_twin_stays_packed_and_agrees(folders):
    import torch
    from transformers import AutoModel

    report = bridge.verify(folders / "packed", against=folders / "float")
    assert report.ok, report.problems
    assert report.max_abs_logit_diff < 1e-6
    module = bridge.torch.load(folders / "packed")
    own = AutoModel.from_pretrained(folders / "packed", trust_remote_code=True).eval()
    tokens = torch.arange(6).reshape(2, 3)
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (m(tokens, images, tokens).decoder_logits for m in (module, own))
    torch.testing.assert_close(a, b)
    for each in (module, own):
        state = each.state_dict()
        assert state["text.0.attn.qkv.weight"].dtype == torch.uint8
        assert state["vision.blocks.0.mlp.fc1.weight"].dtype == torch.int8
    held = sum(x.nbytes for x in own.state_dict().values())
    assert held <= 1.3 * (folders / "packed/model.safetensors").stat().st_size


def test_inspect_shows_ternary_values_as_such(folders, capsys):
    report = bridge.inspect(folders / "packed")
    assert (report.format, report.problems, report.damaged) == ("packed", [], False)
    assert set(report.dtypes) == {"ternary", "int8", "float32", "int32"}
    assert report.bytes < bridge.inspect(folders / "float").bytes / 2
    row = next(row for row in report.listing if row["name"] == "text.0.attn.qkv.weight")
    assert (row["shape"], row["dtype"]) == ([90, 30], "ternary")
    signs = np.sign(tensors(folders / "packed")[TERNARY])
    assert row["values"] == {str(n): int((signs == n).sum()) for n in (-1, 0, 1)}
    _, out, _ = command(capsys, "inspect", folders / "packed", "--tensors")
    assert "text.0.attn.qkv.weight  (90, 30)  ternary: " in out
    assert "% −1, " in out


def test_graphs_keep_what_is_packed(folders, tmp_path):
    """In 8 and 2 bits the very numbers of the packed file; else float32, which a note tells."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    packed, graphs = bridge.open_checkpoint(folders / "packed").packed, tmp_path / "int8"
    report = bridge.convert(folders / "packed", graphs, to="onnx", dtype="int8", verify="none")
    assert report.bytes == (graphs / "weights.bin").stat().st_size
    assert not any("float32 in the output" in note for note in report.notes)
    model = onnx.load(str(graphs / "image_encoder.onnx"))
    held = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    np.testing.assert_array_equal(held[f"{INT8}/int8"].T, packed[INT8].values.read())
    ternary = "image/0/attn/qkv/kernel"
    codes = held[f"{ternary}/2bit"][None] >> np.asarray([0, 2, 4, 6], np.uint8)[:, None, None] & 3
    codes = codes.reshape(-1, codes.shape[-1])[: CONFIG.dim]
    np.testing.assert_array_equal(codes.T.astype(int) - 1, packed[ternary].signs())
    large = bridge.convert(folders / "packed", tmp_path / "float", to="onnx", verify="none")
    assert large.bytes > 1.5 * report.bytes
    assert any("float32 in the output" in note and "--dtype int8" in note for note in large.notes)


def test_memory_is_written_and_forgotten_in_packed_files(folders, tmp_path, capsys):
    folder = shutil.copytree(folders / "packed", tmp_path / "packed")
    file = folder / "model.safetensors"
    call = ("memory", "forget", folder, "--all", "--json")
    assert command(capsys, *call)[0] == 0  # the fixture's was written without a record
    before = file.read_bytes()
    assert command(capsys, "memory", "write", folder, "--text", "word1 word2", "--json")[0] == 0
    _, found, _ = command(capsys, "memory", "read", folder, "--text", "word1 word2", "--json")
    assert found["text"] == "word1 word2"
    assert command(capsys, "memory", "forget", folder, "1", "--json")[0] == 0
    assert file.read_bytes() == before
    assert damage(folder) == []


def edit_config(folder, tmp_path, **entry):
    changed = shutil.copytree(folder, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"packed": entry}))
    (changed / "manifest.json").unlink()
    return changed


@pytest.mark.parametrize("version", [2, None, "1", [1], True, 1.0])
def test_another_version_is_refused(version, folders, tmp_path, capsys):
    folder = edit_config(folders / "packed", tmp_path, version=version)
    code, _, error = command(capsys, "convert", folder, tmp_path / "out")
    assert code == CORRUPT
    assert "version of the model's packing is unknown" in error
    assert not (tmp_path / "out").exists()
    assert command(capsys, "inspect", folder)[0] == CORRUPT


def test_rows_that_do_not_fit_are_refused(folders, tmp_path):
    folder = edit_config(folders / "packed", tmp_path, version=1, rows={})
    with pytest.raises(Problem, match="hidden = 42"):
        bridge.load(folder)


def test_bits_that_are_no_ternary_value_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders / "packed", tmp_path / "changed")
    (folder / "manifest.json").unlink()
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    place = json.loads(content[8 : 8 + length])["text.0.attn.qkv.weight"]["data_offsets"][0]
    content[8 + length + place] = 0xFF
    file.write_bytes(content)
    for load in (bridge.load, bridge.torch.load):
        with pytest.raises(Problem, match="not ternary"):
            load(folder)


def rewritten(folder, tmp_path, change):
    """A copy of a packed folder without its manifest, after `change` of header and data."""
    copied = shutil.copytree(folder, tmp_path / "changed")
    (copied / "manifest.json").unlink()
    file = copied / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    change(header, data)
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return copied


@pytest.mark.parametrize(
    ("name", "value"),
    [("text.0.attn.qkv", x) for x in (float("nan"), float("inf"), 0.0, -1.0)]
    + [("vision.blocks.0.mlp.fc1", x) for x in (float("nan"), -1.0)],
)
def test_scales_that_are_none_are_refused(name, value, folders, tmp_path, capsys):
    def change(header, data):
        struct.pack_into("<f", data, header[f"{name}.weight_scale"]["data_offsets"][0], value)

    folder = rewritten(folders / "packed", tmp_path, change)
    for load in (bridge.load, bridge.torch.load):
        with pytest.raises(Problem, match="weight_scale is no scale") as raised:
            load(folder)
        assert raised.value.exit_code == CORRUPT
    report = bridge.inspect(folder)
    assert report.damaged
    assert any("weight_scale is no scale" in problem for problem in report.problems)
    code, _, error = command(capsys, "convert", folder, tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (CORRUPT, False)
    assert "weight_scale is no scale" in error


@pytest.mark.parametrize("name", ["text.0.attn.qkv", "vision.blocks.0.mlp.fc1"])
def test_values_without_a_scale_are_refused(name, folders, tmp_path):
    """The 8-bit ones have the shape of the matrix, and would pass for it."""

    def change(header, data):
        header["spare"] = header.pop(f"{name}.weight_scale")

    with pytest.raises(Problem, match=f"{name}.weight has no scale") as raised:
        bridge.load(rewritten(folders / "packed", tmp_path, change))
    assert raised.value.exit_code == CORRUPT


def test_a_truncated_file_is_refused_and_left_as_it_is(folders, tmp_path, capsys):
    folder = shutil.copytree(folders / "packed", tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    before = file.read_bytes()
    out = tmp_path / "out"
    for words in (
        ("convert", folder, out),
        ("convert", folder, out, "--to", "packed"),
        ("memory", "read", folder, "--text", "word1"),
        ("memory", "write", folder, "--text", "word1"),
        ("generate", folder, "--prompt", "word1"),
    ):
        code, _, error = command(capsys, *words)
        assert code == CORRUPT, words
        assert "truncated" in error, words
    assert not out.exists()
    assert file.read_bytes() == before
    assert bridge.inspect(folder).damaged


def test_it_is_for_bitgen_and_has_no_other_dtype(folders, model_directory, tmp_path):
    for source, options in ((model_directory, {}), (folders / "float", {"dtype": "bfloat16"})):
        with pytest.raises(Problem, match="packed") as raised:
            bridge.convert(source, tmp_path / "out", to="packed", **options)
        assert raised.value.exit_code == USAGE


@pytest.mark.parametrize("kind", ["ternary", "int8"])
def test_odd_matrices(kind):
    for exact in (np.zeros((5, 3)), np.full((4, 2), 1e-9), np.eye(7, 3) * 1e30, -np.ones((1, 9))):
        array = exact.astype(np.float32)
        tensor = Tensor("m", array.shape, array.dtype, lambda array=array: array)
        packed = packing.pack(tensor, kind, lambda *_: None)
        read = packed.unpacked().read()
        assert read.shape == array.shape
        assert np.isfinite(read).all()
        if kind == "int8":
            np.testing.assert_allclose(read, array, rtol=1e-6)
    nan = Tensor("m", (2, 2), np.dtype("f4"), lambda: np.full((2, 2), np.nan, np.float32))
    with pytest.raises(Problem, match="NaN or infinite"):
        packing.pack(nan, kind, lambda *_: None).values.read()


@pytest.mark.parametrize(("preset", "most"), [("mini", 10), ("edge", 36), ("card", 105)])
def test_sizes_on_disk(preset, most):
    config = jaxmodels.arch("bitgen").PRESETS[preset]
    shapes = parameter_shapes("bitgen", config)
    state = state_shapes("bitgen", config)
    tensors = {p: Tensor(p, shape, np.dtype("f4"), list) for p, shape in (shapes | state).items()}
    source = Checkpoint(
        Path(), "jax", "bitgen", preset, config, {}, [], tensors, frozenset(state), None, {}, []
    )
    plan = make_plan(source, target("packed"), "keep", (), 10**10)
    tokenizer = 1.8e6 if config.vocab > 50_000 else 0  # GPT-2's
    assert plan.bytes + tokenizer + 3e5 <= most * 1e6, plan.bytes
