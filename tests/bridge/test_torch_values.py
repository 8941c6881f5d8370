"""What torch files hold besides tensors, tensors of every form, and files of before torch 1.6."""

import argparse
import collections
import dataclasses
import enum
import functools
import pathlib
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

import bridge
from bridge.core.twins import to_torch
from bridge.legacy.torch_file import read_torch
from bridge.legacy.values import Record
from jaxmodels.errors import CORRUPT, MISMATCH, UNSAFE, Problem
from tests.bridge.helpers import GOLDEN
from tests.bridge.zips import by_global, text

NANOGPT = GOLDEN.parent / "nanogpt_bias" / "ckpt.pt"
pytestmark = pytest.mark.usefixtures("readers_here")


class Outer:
    class Inner(enum.Enum):
        X = 1


class Flags(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Sizes:
    width: int = 3


class Subclass(torch.Tensor):
    pass


def function(*_):
    return 1.0


VALUES = {
    "scalars": [np.float64(1.5), np.int64(7), np.bool_(True), np.str_("a")],
    "arrays": [np.arange(5), np.zeros((0, 3)), np.array([{}, None], object), np.array(["ab"])],
    "odd arrays": [np.zeros(2, [("a", "f4")]), np.zeros(2, "M8[s]"), np.ma.array([1], mask=[0])],
    "namespace": argparse.Namespace(lr=1e-3, inner=argparse.Namespace(a=1)),
    "paths": [pathlib.Path("/a/b"), pathlib.PureWindowsPath("c:/x")],
    "sets": [{1, 2}, frozenset({"a"}), {(1, 2): 3}, {frozenset({1}): 2}, {Flags.A: 1}],
    "collections": [
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("aab"),
        collections.deque([1, 2], maxlen=3),
    ],
    "classes": [Sizes(), Outer.Inner.X, Flags.A | Flags.B, Outer, int, function],
    "calls": [functools.partial(function, 1), 1 + 2j, range(3), slice(1, 2), ValueError("x")],
    "states": [torch.get_rng_state(), np.random.RandomState(0).get_state(), random.getstate()],
    "generators": [np.random.default_rng(0), np.random.RandomState(0), random.Random(0)],
    "torch": [torch.float16, torch.device("cpu"), torch.strided, torch.nn.Linear(2, 2)],
    "tensors": [
        torch.zeros(2, dtype=torch.cfloat),
        torch.zeros(2).to(torch.float8_e4m3fn),
        torch.eye(3).to_sparse(),
        torch.empty(2, device="meta"),
        torch.zeros(2).as_subclass(Subclass),
    ],
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", VALUES)
def test_values_that_nobody_needs_do_not_sink_a_file(tmp_path, name, protocol, old):
    weights = torch.randn(3)
    saved = {"w": weights, "other": VALUES[name]}
    path = tmp_path / "x.pt"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    assert torch.equal(to_torch(read_torch(path)["w"]), weights)


def test_numbers_and_fields_are_read(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"n": np.int64(7), "args": argparse.Namespace(lr=0.5), "sizes": Sizes(4)}, path)
    found = read_torch(path)
    assert (found["n"], dict(found["args"]), found["sizes"]["width"]) == (7, {"lr": 0.5}, 4)
    assert isinstance(found["args"], Record)
    assert found["args"].name == "argparse.Namespace"


COMPLEX, REAL = torch.randn(4, 3, dtype=torch.cfloat), torch.randn(6, 8)
TENSORS = {
    "the imaginary part of a conjugate": COMPLEX.conj().imag,
    "negated": torch._neg_view(REAL).T[1:3, ::2],
    "the real part": COMPLEX.real,
    "expanded": REAL[:1].expand(5, 8),
    "one number expanded": torch.full((1,), 0.5).expand(3, 100),
    "diagonal": torch.diagonal(REAL),
    "overlapping": torch.as_strided(REAL, (3, 3), (2, 5), 4),
    "empty": torch.zeros(3, 0)[1:],
    "uint16": torch.arange(5).to(torch.uint16),
    "uint32": torch.arange(5).to(torch.uint32)[2:],
    "bfloat16": REAL.bfloat16(),
    "parameter": torch.nn.Parameter(REAL.clone()),
    "buffer": torch.nn.Buffer(REAL.clone()),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
}
TAGGED = torch.nn.Parameter(REAL.clone())
TAGGED.tag = "of a parallel model"


@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_every_form(tmp_path, old):
    saved = {**TENSORS, "with attributes": TAGGED}
    if old:  # which cannot hold numbers under two dtypes
        saved = {name: tensor for name, tensor in saved.items() if "real" not in name}
    for name, tensor in saved.items():
        torch.save({"w": tensor}, tmp_path / "x", _use_new_zipfile_serialization=not old)
        found = to_torch(read_torch(tmp_path / "x")["w"])
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(found, tensor.detach().clone()), name


def test_a_tensor_of_a_device_without_storages(tmp_path):
    class Away:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_device_tensor_from_numpy
            return rebuild, (REAL.numpy(), torch.bfloat16, "xla:0", False)

    torch.save({"w": Away()}, tmp_path / "x")
    assert torch.equal(to_torch(read_torch(tmp_path / "x")["w"]), REAL.bfloat16())


def test_big_endian_files(tmp_path):
    torch.save({"a": REAL, "b": REAL.bfloat16(), "c": REAL > 0}, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as old, zipfile.ZipFile(tmp_path / "y", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if "/data/" in name:
                kind = {192: "u4", 96: "u2"}.get(len(data), "u1")
                data = np.frombuffer(data, kind).byteswap().tobytes()
            new.writestr(name, b"big" if name.endswith("/byteorder") else data)
    found = {name: to_torch(t) for name, t in read_torch(tmp_path / "y").items()}
    assert torch.equal(found["a"], REAL)
    assert torch.equal(found["b"], REAL.bfloat16())
    assert torch.equal(found["c"], REAL > 0)


def model_file(path, change=lambda value: None, **options):
    value = torch.load(NANOGPT, weights_only=True)
    change(value)
    torch.save(value, path, **options)
    return path


def refused(path, exit_code, **options):
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(path, **options)
    assert caught.value.exit_code == exit_code
    return f"{caught.value.what}: {caught.value.why}"


def test_a_tensor_of_the_model_that_only_code_makes_is_refused(tmp_path):
    wte = next(k for k in torch.load(NANOGPT)["model"] if k.endswith("wte.weight"))

    def refusal(tensor, code):
        return refused(
            model_file(tmp_path / "x.pt", lambda v: v["model"].update({wte: tensor})), code
        )

    values = torch.load(NANOGPT)["model"][wte]
    assert "Subclass" in refusal(values.as_subclass(Subclass), UNSAFE)
    assert "Sizes" in refusal(Sizes(), UNSAFE)
    assert "sparse" in refusal(values.to_sparse(), MISMATCH)
    assert "float8" in refusal(values.to(torch.float8_e4m3fn), MISMATCH)
    assert "meta" in refusal(torch.empty(97, 32, device="meta"), MISMATCH)


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "x.pt", UNSAFE)
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "x.pt")
    assert "pickled object" in refused(tmp_path / "x.pt", UNSAFE)


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "subprocess Popen", "builtins eval", "builtins __import__",
     "builtins getattr", "torch load", "torch.hub load", "torch.os system", "shutil rmtree",
     "operator attrgetter", "collections abc.sys.exit", "argparse Namespace.__globals__"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["beside", "in the settings"])
def test_names_that_reach_for_code_sink_a_file(tmp_path, name, where):
    call = by_global(*name.split()) + b"(" + text("touch HERE") + b"tR"
    value = call if where == "beside" else b"}" + text("a") + call + b"s"
    pickled = b"\x80\x04}" + text("other") + value + b"s."
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    assert refused(tmp_path / "x", UNSAFE)


def test_the_old_format_is_the_same_model(tmp_path):
    old = model_file(tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    new, found = bridge.open_checkpoint(NANOGPT), bridge.open_checkpoint(old)
    assert (found.format, found.config, found.origin) == ("nanogpt", new.config, new.origin)
    for path, tensor in new.tensors.items():
        np.testing.assert_array_equal(found.tensors[path].read(), tensor.read())
    data = old.read_bytes()
    for changed in (data[:-1], data + b"x", data[: len(data) // 2], data[:20]):
        old.write_bytes(changed)
        refused(old, CORRUPT)


def test_views_in_the_old_format(tmp_path):
    """As torch before 0.4 wrote them: part of a storage as one of its own."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            kind = ("storage", torch.FloatStorage, "7", "cpu", 10)
            return (*kind, ("8", 2, 5)) if value == "view" else None

    class Viewed:
        def __reduce__(self):
            return torch._utils._rebuild_tensor, ("view", 1, (2, 2), (2, 1))

    with (tmp_path / "x").open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump({"w": Viewed()})
        pickle.dump(["7"], file, 2)
        file.write((10).to_bytes(8, "little") + np.arange(10, dtype="<f4").tobytes())
    assert read_torch(tmp_path / "x")["w"].read().tolist() == [[3, 4], [5, 6]]
