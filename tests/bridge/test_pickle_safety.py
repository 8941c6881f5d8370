"""Pickles that reach for code: refused with exit code 4, named, placed; nothing of them runs."""

import pickle
import sys

import numpy as np
import pytest

import bridge
from jaxmodels.errors import UNSAFE
from tests.bridge.helpers import command
from tests.bridge.zips import PLAIN_STATE, by_global, by_stack, checkpoint, refused, text

pytestmark = pytest.mark.usefixtures("readers_here")

TEXT = "echo hello > HERE"


def by_memo(module, name):
    """The strings are put away first, and fetched when the name is made."""
    return text(module) + b"\x940" + text(name) + b"\x940" + b"h\x00h\x01\x93"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a trace when it is imported, and a working folder that stays empty."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "canary_module.py").write_text("open('HERE', 'w').write('imported')")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "runpy", raising=False)
    yield tmp_path / "work"
    assert not {"canary_module", "runpy"} & sys.modules.keys()
    assert not list((tmp_path / "work").iterdir())


GADGETS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("logging", "FileHandler"),
    ("runpy", "_run_code"),
    ("runpy", "run_path"),
    ("canary_module", "anything"),
    ("numpy", "load"),
    ("numpy", "ndarray.__class__"),
    ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ("numpy.core.multiarray", "fromstring"),
    ("numpy", "object_"),
    ("jax._src.array", "os.system"),
    ("optax._src.base", "os.system"),
    ("optax", "__builtins__"),
    ("collections", "OrderedDict.__init__"),
    ("torch._utils", "_rebuild_tensor_v2"),
]


@pytest.mark.parametrize("form", [by_global, by_stack, by_memo])
@pytest.mark.parametrize(("module", "name"), GADGETS)
def test_names_are_refused_and_placed(canary, tmp_path, form, module, name):
    made = b"\x80\x04" + form(module, name)
    pickled = made + b"(" + text(TEXT) + b"tR."
    at = 2 if form is by_global else len(made) - 1
    said = refused(checkpoint(tmp_path / "x.zip", pickled))
    assert f"names {module}.{name} at byte {at};" in said
    assert "x.zip: params/x.pkl.gz" in said


@pytest.mark.parametrize("where", ["step", "deep"])
def test_the_state_is_watched_too(canary, tmp_path, where):
    evil = by_stack("posix", "system") + b"(" + text(TEXT) + b"tR"
    value = evil if where == "step" else b"(]" + evil + b"at"
    state = PLAIN_STATE.replace(b"K\x03" if where == "step" else b")u", value) + b"u."
    assert "names posix.system" in refused(checkpoint(tmp_path / "x.zip", b"\x80\x04}.", state))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"(" + text(TEXT) + b"iposix\nsystem\n", "uses INST of 'posix system'"),
        (b"(" + by_global("numpy", "dtype") + text(TEXT) + b"o", "uses OBJ"),
        (b"\x82\x07", "uses EXT1 of 7"),
        (b"\x83\x07\x00", "uses EXT2 of 7"),
        (b"\x84\x07\x00\x00\x00", "uses EXT4 of 7"),
        (b"Psome id\n", "uses PERSID of 'some id'"),
        (text("some id") + b"Q", "uses BINPERSID"),
        (by_global("numpy", "dtype") + b")}\x92", "uses NEWOBJ_EX"),
    ],
)
def test_other_ways_to_code(canary, tmp_path, code, said):
    found = refused(checkpoint(tmp_path / "x.zip", b"\x80\x04" + code + b"."))
    assert f"pickle {said} at byte " in found


class Reduced:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_what_python_itself_writes(canary, tmp_path, protocol):
    import os

    pickled = pickle.dumps({"kernel": Reduced(os.system, TEXT)}, protocol)
    assert "posix.system" in refused(checkpoint(tmp_path / "x.zip", pickled))


def test_the_command_says_so(canary, tmp_path, capsys):
    pickled = b"\x80\x04" + by_global("os", "system") + b"."
    path = checkpoint(tmp_path / "x.zip", pickled)
    for verb in (["inspect", path], ["convert", path, tmp_path / "out"], ["generate", path]):
        options = ["--prompt", "a"] if verb[0] == "generate" else []
        code, out, err = command(capsys, *verb, *options)
        assert code == UNSAFE
        assert "os.system at byte 2" in str(out) + err
        assert "Traceback" not in err
    report = bridge.inspect(path)
    assert (report.unsafe, report.format) == (True, "wigip-zip")


@pytest.mark.parametrize(
    "array",
    [np.array([{}, None], object), np.array(["a"]), np.array([b"a"]), np.zeros(2, "M8[s]")],
)
def test_arrays_of_anything_but_numbers(tmp_path, array):
    pickled = pickle.dumps({"kernel": array})
    assert "arrays that are not numbers" in refused(checkpoint(tmp_path / "x.zip", pickled))


def test_arrays_with_fields(tmp_path):
    pickled = pickle.dumps({"kernel": np.zeros(2, [("a", "f4")])})
    assert "arrays that are not numbers" in refused(checkpoint(tmp_path / "x.zip", pickled))
