"""The fuzzer's corpus: small valid inputs in every format, and hostile ones."""

import argparse
import base64
import gzip
import io
import json
import pickle
import random
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bridge
from bridge.core.tensors import digest_of
from tests.bridge.helpers import GOLDEN, HEADS, SEED, random_params, save_tree, write_run
from tests.bridge.zips import by_global, by_stack, numpy_pickle, text

SEEDS = GOLDEN.parent


class Case(NamedTuple):
    """An input that readers take, and what they must make of it."""

    name: str
    path: Path
    config: dict[str, Any]
    """What its files cannot say."""
    sealed: bool
    """Whether digests tell every change: what is accepted then must be right."""
    tensors: dict[str, str]
    """Our path → digest."""
    settings: Any
    """The Config."""


# What only a digest or CRC makes safe is sealed; the others say what they say.
SEALED = "run directory shards gguf orbax nanogpt bwetaf wigip ckpt.pt step_7.zip".split()
OPEN = (
    "bare-shards gpt2 seed-orbax seed-bwetaf tree model.safetensors good_stuff.pkl model.gguf "
    "dinov2-head bin-shards old.pth training.pth lightning.ckpt timm.safetensors manager"
)
UNSAID = {"seed-orbax": HEADS} | {
    name: {"heads": 2}
    for name in (
        *("tree", "model.safetensors", "bare-shards", "good_stuff.pkl", "manager"),
        *("old.pth", "training.pth", "lightning.ckpt", "timm.safetensors"),
    )
}


def write(folder: Path) -> None:
    """Makes a sound input of every format, and the hostile ones, in a new folder."""
    sound = folder / "sound"
    sound.mkdir(parents=True)
    run = write_run(sound / "run", {1: 2.0})
    wikigpt = write_run(folder / "wikigpt", {1: 2.0}, spec="wikigpt:tiny")
    sources: dict[str, tuple[Path, dict[str, Any]]] = {
        "directory": (run, {}),
        "shards": (run, {"max_shard_size": "40KB"}),
        "bare-shards": (run, {"max_shard_size": "40KB"}),
        "gpt2": (wikigpt, {"to": "gpt2"}),
        "gguf": (wikigpt, {"to": "gguf", "dtype": "q8_0"}),
        "orbax": (run, {"to": "orbax"}),
        "nanogpt": (SEEDS / "nanogpt_bias" / "ckpt.pt", {"to": "nanogpt"}),
        "bwetaf": (SEEDS / "bwetaf_rope", {"to": "bwetaf"}),
        "wigip": (SEEDS / "wigip" / "step_7.zip", {"to": "wigip-zip"}),
    }
    for name, (source, options) in sources.items():
        bridge.convert(source, sound / name, **options)
    for name in ("bare-shards", "gpt2"):
        (sound / name / "manifest.json").unlink()
    copies = {
        "model.safetensors": sound / "directory" / "model.safetensors",
        "ckpt.pt": SEEDS / "nanogpt_bias" / "ckpt.pt",
        "step_7.zip": SEEDS / "wigip" / "step_7.zip",
        "good_stuff.pkl": SEEDS / "bwetaf_sin" / "good_stuff.pkl",
        "model.gguf": sound / "gguf" / "model.gguf",
    }
    for name, source in copies.items():
        shutil.copyfile(source, sound / name)
    shutil.copytree(SEED, sound / "seed-orbax")
    ignored = shutil.ignore_patterns("io.npz")
    shutil.copytree(SEEDS / "bwetaf_sin", sound / "seed-bwetaf", ignore=ignored)
    save_tree(sound / "tree", random_params())
    _as_people_write(sound)
    hostile(folder / "hostile")


def _as_people_write(sound: Path) -> None:
    """Models within something larger, and in the forms of other libraries."""
    import torch
    from safetensors.torch import save_file

    from tests.bridge.test_any_dinov2 import as_timm, made, published

    for name, head in (("dinov2-head", True), ("bin-shards", False)):
        model, tower = made(2, 4, 2, 0, False, head, 0)
        model.save_pretrained(sound / name, max_shard_size="1GB" if head else "2KB")
    _as_bin(sound / "bin-shards")
    state = published(tower)
    under = {f"backbone.{key}": tensor for key, tensor in state.items()}
    torch.save(state, sound / "old.pth", _use_new_zipfile_serialization=False)
    student = {f"student.{key}": tensor + 1 for key, tensor in under.items()}
    teacher = {f"teacher.{key}": tensor for key, tensor in under.items()}
    torch.save({"model": student | teacher, "iteration": 3}, sound / "training.pth")
    records = {
        "hyper_parameters": argparse.Namespace(lr=np.float64(0.1), paths=[Path("x")]),
        "rng": (np.random.RandomState(0).get_state(), random.getstate(), torch.get_rng_state()),
        "sets": {"a": {1, 2}, "b": defaultdict(list, a=[np.float32(1)])},
    }
    lightning = {f"model._orig_mod.{key}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": lightning, "epoch": 1, **records}, sound / "lightning.ckpt")
    save_file(
        {key: tensor.contiguous() for key, tensor in as_timm(state).items()},
        sound / "timm.safetensors",
    )
    for step in (5, 10):  # as a CheckpointManager lays them
        params = {f"params/{path}": array for path, array in random_params().items()}
        save_tree(sound / "manager" / str(step) / "default", params)


def _as_bin(folder: Path) -> None:
    """Makes shards of safetensors those of torch."""
    import torch
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    names = {name: name.replace("safetensors", "bin") for name in said["weight_map"].values()}
    said["weight_map"] = {key: names[name] for key, name in said["weight_map"].items()}
    for name, new in names.items():
        torch.save(load_file(folder / name), folder / new)
        (folder / name).unlink()
    index.unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(said))


def cases(folder: Path) -> list[Case]:
    """The sound inputs that `write` made."""
    return [_case(folder / "sound" / name) for name in (*SEALED, *OPEN.split())]


def _case(path: Path) -> Case:
    config = UNSAID.get(path.name, {})
    source = bridge.open_checkpoint(path, config=config)
    tensors = {name: digest_of(tensor.read()) for name, tensor in source.tensors.items()}
    return Case(path.name, path, config, path.name in SEALED, tensors, source.config)


GADGETS = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("logging", "FileHandler"),
    ("runpy", "run_path"),
    ("fuzz_canary", "anything"),
    ("numpy", "load"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("webbrowser", "open"),
    ("socket", "create_connection"),
    ("shutil", "rmtree"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
]


def pickles() -> dict[str, bytes]:
    """Pickles that reach for code, or are built to cost memory or time."""
    made = {}
    for module, name in GADGETS:
        for form, by in (("global", by_global), ("stack", by_stack)):
            call = by(module, name) + b"(" + text("touch HERE") + b"tR."
            made[f"{module}.{name}-{form}"] = b"\x80\x04" + call
    laughs = b")" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(60))
    made |= {
        "laughs": b"\x80\x04" + laughs + b".",
        "deep": b"\x80\x04" + b"]" * 50_000 + b".",
        "deep-tuple": b"\x80\x04)" + b"\x85" * 200_000 + b".",
        "memo": b"\x80\x04Nr\x00\x00\x00\x10.",
        "bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.",
        "text": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"abc.",
        "long": b"\x80\x04\x8b\xff\xff\xff\x7fabc.",
        "long-text": b"\x80\x04I" + b"9" * 1_000_000 + b"\n.",
        "inst": b"\x80\x04(" + text("x") + b"iposix\nsystem\n.",
        "obj": b"\x80\x04(" + by_global("posix", "system") + text("x") + b"o.",
        "extension": b"\x80\x04\x82\x07.",
        "persistent": b"\x80\x04Psome\n.",
        "newobj-ex": b"\x80\x04" + by_global("numpy", "dtype") + b")}\x92.",
        "build": b"\x80\x04" + by_global("collections", "OrderedDict") + b")R}b.",
        "two": b"\x80\x04}.\x80\x04}.",
        "huge-array": numpy_pickle((2**40,)),
        "strided": numpy_pickle((2**32, 2**32)),
        "object": pickle.dumps({"kernel": np.array([{}], object)}),
    }
    return made


def hostile(folder: Path) -> None:
    """Writes files that must be refused into a new folder."""
    folder.mkdir()
    files = {name: _in_torch(data) for name, data in pickles().items()}
    files |= {f"{name}.wigip": _in_wigip(data) for name, data in pickles().items()}
    files |= _zips() | _headers()
    for name, data in files.items():
        (folder / name.replace("/", "_")).write_bytes(data)


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return held.getvalue()


def _in_torch(data: bytes) -> bytes:
    return _zip({"x/data.pkl": data, "x/data/0": bytes(64), "x/version": b"3\n"})


def _in_wigip(data: bytes) -> bytes:
    return _zip(
        {"state_and_opt.pkl.gz": gzip.compress(data), "params/x.pkl.gz": gzip.compress(data)}
    )


def _zips() -> dict[str, bytes]:
    plain = gzip.compress(b"\x80\x04}.")
    bomb = gzip.compress(bytes(300_000_000), 9)
    member = "params/x.pkl.gz"
    link = zipfile.ZipInfo("params/y.pkl.gz")
    link.external_attr = 0o120777 << 16
    return {
        "traversal.zip": _zip({member: plain, "../../evil": b"x"}),
        "absolute.zip": _zip({member: plain, "/tmp/evil": b"x"}),
        "case.zip": _zip({member: plain, "PARAMS/X.pkl.gz": plain}),
        "bomb.zip": _zip({member: bomb}, zipfile.ZIP_DEFLATED),
        "nested.zip": _zip({member: gzip.compress(plain)}),
        "quine.zip": _zip({member: _zip({member: plain})}),
        "junk.zip": b"junk" * 100 + _zip({member: plain}),
        "many.zip": _zip({member: plain, **{f"params/{i}.pkl.gz": b"" for i in range(11_000)}}),
        "torchscript.pt": _zip({"x/data.pkl": b"\x80\x02}.", "x/code/__torch__.py": b"import os"}),
        "torch-bomb.pt": _zip({"x/data.pkl": bytes(100_000_000)}, zipfile.ZIP_DEFLATED),
        "legacy.pt": base64.b64decode("gAKKCmz8nEb5IGqoUBku") + b"junk",
    }


def _headers() -> dict[str, bytes]:
    def header(value: Any, size: int | None = None, data: bytes = bytes(64)) -> bytes:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        return (len(content) if size is None else size).to_bytes(8, "little") + content + data

    def one(**entry: Any) -> dict[str, Any]:
        return {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **entry}}

    deep = b"{" + b'"a":{' * 100_000
    return {
        "empty": b"",
        "seven": b"1234567",
        "far.safetensors": header(one(), 2**63),
        "array.safetensors": header([1]),
        "deep.safetensors": header(deep),
        "twice.safetensors": header(b'{"a":1,"a":2}'),
        "overflow.safetensors": header(one(shape=[2**32, 2**32, 4])),
        "negative.safetensors": header(one(shape=[-16])),
        "hole.safetensors": header(one(data_offsets=[4, 68])),
        "fp8.safetensors": header(one(dtype="F8_E4M3", shape=[64])),
        "dims.safetensors": header(one(shape=[1] * 10_000)),
        "float.safetensors": header(one(shape=[16.0])),
        "nan.safetensors": header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,64]}}'),
        "path.safetensors": header({"../../x\0": one()["a"]}),
        "bigint.safetensors": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b"]}}"),
        "tree.msgpack": b"\x81\xa1a\xc7\xff\x01" + bytes(255),
        "deep.msgpack": b"\x81\xa1a" * 100_000,
        "wide.msgpack": b"\xdf\xff\xff\xff\xff\xa1a",
        "array.msgpack": b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
        "complex.msgpack": b"\x81\xa1a\xd4\x02\xc0",
        "keys.gguf": b"GGUF\x03\0\0\0" + bytes(8) + (2**62).to_bytes(8, "little"),
        "array.gguf": b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little")
        + (1).to_bytes(8, "little") + b"a\x09\0\0\0\0\0\0\0" + (2**62).to_bytes(8, "little"),
    }  # fmt: skip
