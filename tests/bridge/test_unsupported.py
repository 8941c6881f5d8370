"""Files that are not checkpoints: the error says what they are."""

import io
import json
import struct
import zipfile

import flax.serialization
import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bridge
from jaxmodels.errors import CORRUPT, Problem


def zipped(*names):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, "x" * 40)
    return held.getvalue()


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707\nsize 548105171\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(40)
FLAX = flax.serialization.msgpack_serialize({"transformer": {"wte": np.ones(3, np.float32)}})
LLMC = struct.pack("<8i", 20240326, 3, 1024, 50257, 12, 12, 768, 50304) + bytes(1000)
KINDS = {
    "model.safetensors": (POINTER, "git-lfs pointer"),
    "pytorch_model.bin": (POINTER, "git-lfs pointer"),
    "gpt2.pt": (PAGE, "web page"),
    "tf_model.h5": (HDF5, "TensorFlow"),
    "flax_model.msgpack": (FLAX, "Flax"),
    "gpt2_124M.bin": (LLMC, "llm.c"),
    "ggml-model-f16.bin": (b"lmgg" + bytes(30), "ggml"),
    "decoder.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x05", "ONNX"),
    "model.safetensors.incomplete": (b"\x01\x02\x03\x04", "did not end"),
    "weights.safetensors": (b"", "empty"),
    "zeros.safetensors": (bytes(4096), "zeros"),
    "error.bin": (b"Entry not found", "Entry not found"),
    "__0_0.distcp": (b"PK\x03\x04" + bytes(30), "dcp_to_torch"),
    "weights.npz": (zipped("wte.npy", "wpe.npy"), "NumPy"),
    "weights.npy": (b"\x93NUMPY\x01\x00" + bytes(120), "NumPy"),
    "gpt2.keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "Keras"),
    "gpt2.pt2": (zipped("gpt2/archive_format", "gpt2/models/model.json"), "torch.export"),
    "weights.tar.gz": (b"\x1f\x8b\x08\x00" + bytes(9), "unpack"),
}


def refused(path):
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(path)
    assert caught.value.exit_code == CORRUPT
    return "\n".join([caught.value.what, caught.value.why, caught.value.fix])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("config", [None, {"model_type": "gpt2"}])
def test_the_cause_is_named(tmp_path, name, config):
    content, told = KINDS[name]
    (tmp_path / name).write_bytes(content)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert told in refused(tmp_path / name)
    if told not in ("Entry not found",):
        assert told in refused(tmp_path)


@pytest.mark.parametrize("rest", [b"", b"\x0a", b"\x0a\x12"])
def test_files_of_a_few_bytes_are_refused(tmp_path, rest):
    path = tmp_path / "few"
    for first in range(256):
        path.write_bytes(bytes([first]) + rest)
        refused(path)


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_a_config_that_was_not_fetched(tmp_path, content):
    save_file({"transformer.wte.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    told = "git-lfs" if content is POINTER else "web page"
    assert told in refused(tmp_path)
    assert told in refused(tmp_path / "model.safetensors")
    torch.save({"transformer.wte.weight": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert told in refused(tmp_path)


@pytest.mark.parametrize("end", ["bin", "safetensors"])
def test_a_shard_that_was_not_fetched(tmp_path, end):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    shard = f"model-00001-of-00001.{end}"
    (tmp_path / shard).write_bytes(POINTER)
    index = {"weight_map": {"transformer.wte.weight": shard}}
    name = "pytorch_model.bin" if end == "bin" else "model.safetensors"
    (tmp_path / f"{name}.index.json").write_text(json.dumps(index))
    assert "git-lfs" in refused(tmp_path)


def test_float8_is_named(tmp_path):
    extra = torch.ones(2).to(torch.float8_e4m3fn)
    save_file({"a": torch.ones(2), "b.scale": extra}, tmp_path / "model.safetensors")
    told = refused(tmp_path)
    assert "'b.scale'" in told
    assert "float8" in told


def test_big_endian_gguf(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gpt2", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "big-endian" in refused(tmp_path / "model.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, {"model_type": "gpt2"}])
def test_a_folder_of_accelerate_with_a_distributed_checkpoint(tmp_path, config):
    inside = tmp_path / "pytorch_model_fsdp_0"
    inside.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (inside / name).write_bytes(b"PK\x03\x04" + bytes(30))
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert "dcp_to_torch pytorch_model_fsdp_0 model.pt" in refused(tmp_path)
    assert "dcp_to_torch" in refused(inside)
