"""GGUF: written, read back, read by its own package, and run by llama.cpp."""

import json
import struct

import gguf
import numpy as np
import pytest
from flax import nnx

import bridge
from bridge.core.tensors import DTYPES
from bridge.storage.gguf_reader import read_gguf
from data_pipelines.gpt2 import GPT2Tokenizer
from jaxmodels import extras
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, USAGE, Problem
from tests.bridge.helpers import command, random_params, save_tree, vocabulary

SIZES = {"heads": 2, "gelu": "tanh", "dropout": 0.0}
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}


def write(folder, dtype="float32", params=None, vocab=True, **options):
    """A tiny wikigpt as GGUF; the source lies in `folder/own`."""
    if not (folder / "own").exists():
        save_tree(folder / "own", params or random_params("wikigpt:tiny"))
        (folder / "vocab.json").write_text(json.dumps(vocabulary(64)))
    calls = {"arch": "wikigpt", "config": SIZES, "vocab": folder / "vocab.json" if vocab else None}
    bridge.convert(folder / "own", folder / dtype, to="gguf", dtype=dtype, **calls | options)
    return folder / dtype / "model.gguf"


def ours(path, prompt, new):
    """What our model writes after some ids, the likeliest token each time."""
    model, ids = bridge.load(path), list(prompt)
    for at in range(len(prompt), len(prompt) + new):
        row = np.zeros((1, 32), np.int32)  # one length, so one program; it sees no later token
        row[0, :at] = ids
        ids.append(int(logits_of(model, row)[0, at - 1].argmax()))
    return ids[len(prompt) :]


@nnx.jit
def logits_of(model, tokens):
    return model(tokens)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.mark.parametrize("dtype", TYPES)
def test_every_precision_comes_back_and_is_what_gguf_reads(folder, dtype):
    path = write(folder, dtype, verify="logits")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    said, found = read_gguf(path)
    assert theirs.keys() == found.keys()
    for name, tensor in found.items():
        kind = theirs[name].tensor_type
        vector = len(tensor.shape) == 1 or "position" in name
        assert kind.name == ("F32" if vector else TYPES[dtype])
        values = gguf.quants.dequantize(theirs[name].data, kind).reshape(tensor.shape)
        np.testing.assert_array_equal(values, tensor.read().astype(np.float32), err_msg=name)
    assert said["gpt2.attention.head_count"] == 2
    # The file alone says everything: sizes, and the vocabulary.
    source = bridge.open_checkpoint(path)
    assert (source.arch, source.format, source.assumed) == ("wikigpt", "gguf", {})
    assert (source.config.gelu, source.config.dropout) == ("tanh", 0.0)
    assert source.tokenizer.vocab_size == 64


def test_sizes_of_files(folder):
    plans = {
        dtype: bridge.convert(
            folder / "own", folder / "x", to="gguf", dtype=dtype, config=SIZES, dry_run=True
        )
        for dtype in TYPES
    }
    rows = {dtype: {row["to"]: row for row in plan.plan} for dtype, plan in plans.items()}
    up = {dtype: rows[dtype]["blk.0.ffn_up.weight"] for dtype in TYPES}
    assert [up[dtype]["dtype"] for dtype in TYPES] == list(TYPES)
    assert [up[dtype]["bytes"] for dtype in TYPES] == [8192, 4096, 4096, 64 * 34]
    assert up["q8_0"]["op"] == "transpose"


def test_float32_and_back_to_safetensors_is_bit_exact(folder, tmp_path):
    write(folder, "float32", force=True)
    bridge.convert(folder / "float32", tmp_path / "back", verify="roundtrip")
    a = bridge.open_checkpoint(folder / "own", config=SIZES)
    b = bridge.open_checkpoint(tmp_path / "back")
    for path, tensor in a.tensors.items():
        np.testing.assert_array_equal(tensor.read(), b.tensors[path].read())


def test_rounding_is_told_and_no_larger_than_half_a_step(folder):
    source = bridge.open_checkpoint(folder / "own", config=SIZES)
    report = bridge.convert(folder / "own", folder / "told", to="gguf", dtype="q8_0", config=SIZES)
    largest = max(np.abs(t.read()).max() for t in source.tensors.values())
    assert 0 < report.max_rounding_error <= largest / 127 / 2 * 1.01
    assert report.max_rounding_error_at in source.tensors


def test_llama_cpp_writes_the_same_tokens(folder):
    from tests.bridge.llama import greedy

    path = write(folder, "float32", force=True)
    tokenizer = bridge.open_checkpoint(path).tokenizer
    prompts = [[5, 6, 7, 8], [40], [9, 30, 2], list(range(20))]
    text = "hello, bär ß漢🎉"
    found = greedy(path, [*((ids, 12) for ids in prompts), (text, 10)])
    for (count, ids), prompt in zip(found, [*prompts, tokenizer.encode(text)], strict=True):
        assert count == len(prompt)
        assert ids == ours(path, np.asarray(prompt).tolist(), len(ids))
    assert [len(ids) for _, ids in found] == [12, 12, 12, 12, 10]
    assert len({tuple(ids) for _, ids in found}) > 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_llama_cpp_runs_the_other_precisions(folder, dtype):
    from tests.bridge.llama import greedy

    path = write(folder, dtype, force=True)
    [(count, ids)] = greedy(path, [([5, 6, 7, 8], 4)])
    assert (count, len(ids)) == (4, 4)
    # Rounded activations may decide a close call otherwise: the first token is none.
    assert ids[0] == ours(path, [5, 6, 7, 8], 1)[0]


@pytest.mark.slow
def test_gpt2s_vocabulary_and_padding(tmp_path):
    from tests.bridge.llama import greedy

    params = random_params("wikigpt:tiny")
    embedding = np.random.default_rng(1).standard_normal((50_304, 32)).astype(np.float32)
    params["embed/embedding"] = 0.2 * embedding
    path = write(tmp_path, params=params, vocab=False)
    said, _ = read_gguf(path)
    assert said["tokenizer.ggml.tokens"][50_256:50_258] == ["<|endoftext|>", "[PAD50257]"]
    assert len(said["tokenizer.ggml.tokens"]) == 50_304
    source = bridge.open_checkpoint(path)
    assert source.tokenizer == GPT2Tokenizer()
    assert source.config.tokens == 50_257
    text = "Hello world, it's 12 o'clock — über 漢!"
    ids = source.tokenizer.encode(text).tolist()
    [(count, found)] = greedy(path, [(text, 4)])
    assert count == len(ids)
    assert found == ours(path, ids, 4)


def test_a_model_without_biases(tmp_path):
    params = {p: a for p, a in random_params("wikigpt:tiny").items() if not p.endswith("/bias")}
    path = write(tmp_path, params=params, verify="logits")
    assert "blk.0.attn_qkv.bias" in read_gguf(path)[1]
    source = bridge.open_checkpoint(path)
    assert not source.config.bias
    assert source.tensors.keys() == params.keys()


def test_what_llama_cpp_does_otherwise_is_said(tmp_path):
    folder = write(tmp_path).parents[1]
    exact = SIZES | {"gelu": "exact"}
    report = bridge.convert(folder / "own", folder / "exact", to="gguf", config=exact)
    assert any("tanh form of GELU" in note for note in report.notes)
    assert any("no vocabulary" in note for note in report.notes)
    assert bridge.open_checkpoint(folder / "exact").config.gelu == "exact"
    report = bridge.convert(folder / "own", folder / "tanh", to="gguf", config=SIZES)
    assert not any("GELU" in note for note in report.notes)


def test_refusals(tmp_path, capsys, monkeypatch):
    written = write(tmp_path)
    words = ["convert", tmp_path / "own", tmp_path / "x", "--set", "heads=2"]
    assert command(capsys, *words, "--dtype", "q8_0")[0] == USAGE
    assert command(capsys, *words, "--to", "gguf", "--optimizer")[0] == USAGE
    monkeypatch.setattr(extras, "installed", lambda module: module != "gguf")
    code, _, err = command(capsys, *words, "--to", "gguf")
    assert code == USAGE
    assert "jaxmodels[gguf]" in err
    assert not (tmp_path / "x").exists()
    # Reading needs no package.
    assert command(capsys, "inspect", written)[0] == DONE


def changed(path, target, change):
    """The file written anew by the package, after `change(keys, tensors)`."""
    reader = gguf.GGUFReader(path)
    said, found = read_gguf(path)
    tensors = {name: np.asarray(tensor.read()) for name, tensor in found.items()}
    said.pop("general.architecture")
    arch = change(said, tensors) or "gpt2"
    writer = gguf.GGUFWriter(target, arch)
    for key, value in said.items():
        field = reader.fields.get(key)
        if field is None or field.types[0] != gguf.GGUFValueType.ARRAY:
            kind = field.types[0] if field else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
        else:
            writer.add_array(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_files_that_others_wrote(folder, tmp_path):
    path = write(folder, "float32", force=True)

    def theirs(said, tensors):
        for key in [key for key in said if key.startswith(("jaxmodels", "tokenizer"))]:
            del said[key]
        tensors["output.weight"] = tensors["token_embd.weight"]

    source = bridge.open_checkpoint(changed(path, tmp_path / "a.gguf", theirs))
    assert (source.config.heads, source.config.gelu, source.tokenizer) == (2, "tanh", None)
    assert any("output.weight repeats token_embd.weight" in note for note in source.notes)

    def untied(said, tensors):
        tensors["output.weight"] = tensors["token_embd.weight"] + 1

    def other_epsilon(said, tensors):
        said["gpt2.attention.layer_norm_epsilon"] = 1e-6

    for change in (untied, other_epsilon, lambda *_: "llama"):
        with pytest.raises(Problem) as caught:
            bridge.open_checkpoint(changed(path, tmp_path / "b.gguf", change))
        assert caught.value.exit_code == MISMATCH


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("general.type", "adapter", "holds no model"), ("split.count", 2, "one of 2 parts")],
)
def test_a_file_that_is_no_model_or_a_part_of_one(folder, tmp_path, key, value, says):
    def change(said, tensors):
        said[key] = value

    path = changed(write(folder, "float32", force=True), tmp_path / "b.gguf", change)
    with pytest.raises(Problem, match=says) as caught:
        bridge.open_checkpoint(path)
    assert caught.value.exit_code == MISMATCH


def test_a_file_that_contradicts_itself(folder, tmp_path):
    path = write(folder, "float32", force=True)

    def other_heads(said, tensors):
        said["gpt2.attention.head_count"] = 4

    def no_json(said, tensors):
        said["jaxmodels.tokenizer"] = "{" * 100_000

    for change in (other_heads, no_json):
        with pytest.raises(Problem) as caught:
            bridge.open_checkpoint(changed(path, tmp_path / "b.gguf", change))
        assert caught.value.exit_code == CORRUPT


HEAD = b"GGUF" + struct.pack("<I", 3)
NAME = struct.pack("<Q", 1) + b"a"


def info(name=NAME, dims=(32,), kind=0, offset=0):
    axes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return name + axes + struct.pack("<IQ", kind, offset)


def whole(infos, keys=(), size=128):
    head = HEAD + struct.pack("<QQ", len(infos), len(keys)) + b"".join([*keys, *infos])
    return head + bytes(-len(head) % 32) + bytes(size)


def test_the_made_up_file_is_sound_otherwise(tmp_path):
    (tmp_path / "x").write_bytes(whole([info()]))
    assert read_gguf(tmp_path / "x")[1]["a"].read().tolist() == [0.0] * 32
    assert read_gguf(tmp_path / "x")[1]["a"].dtype == DTYPES["F32"]


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        HEAD,
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        HEAD + struct.pack("<QQ", 2**63, 0),
        HEAD + struct.pack("<QQ", 0, 2**63),
        HEAD + struct.pack("<QQ", 99_999, 0) + bytes(100),
        whole([info()])[:-1],
        whole([info()]) + b"x",
        whole([info(), info()], size=256),
        whole([info(), info(b"\1" + bytes(7) + b"b")]),
        whole([info(), info(b"\1" + bytes(7) + b"b", offset=64)]),
        whole([info(), info(b"\1" + bytes(7) + b"b", offset=256)], size=512),
        whole([info(kind=2)]),
        whole([info(kind=99)]),
        whole([info(kind=8, dims=(33,))]),
        whole([info(dims=(2**32, 2**32))]),
        whole([info(dims=(1,) * 5)]),
        whole([info(name=struct.pack("<Q", 2**40) + b"a")]),
        whole([info(name=struct.pack("<Q", 1) + b"\xff")]),
        whole([info()], [NAME + struct.pack("<I", 13)]),
        whole([info()], [NAME + struct.pack("<II", 9, 9) + struct.pack("<QIQ", 1, 4, 0)]),
        whole([info()], [NAME + struct.pack("<IIQ", 9, 4, 2**60)]),
        whole([info()], [NAME + struct.pack("<IIQ", 9, 4, 1_999_999)]),
        whole([info()], [NAME + struct.pack("<II", 4, 1)] * 2),
        whole([info()], [NAME + struct.pack("<IQ", 8, 2**50)]),
        whole([info()], [struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 3)]),
    ],
)
def test_files_that_lie(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(Problem) as caught:
        read_gguf(tmp_path / "x")
    assert caught.value.exit_code == CORRUPT
