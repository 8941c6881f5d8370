"""Pickles that reach for code: refused with exit code 4, named, placed; nothing of them runs."""

import gzip
import pickle
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.formats import recognise
from bridge.legacy import inflate, unpickle
from jaxmodels.errors import CORRUPT, MISMATCH, NO_SPACE, UNSAFE, Problem
from tests.bridge.helpers import command
from tests.bridge.zips import PLAIN_STATE, checkpoint, write_zip

TEXT = "echo hello > HERE"


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def by_global(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def by_stack(module, name):
    return text(module) + text(name) + b"\x93"


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


def refused(path, code=UNSAFE):
    with pytest.raises(Problem) as caught:
        recognise(path)
    assert caught.value.exit_code == code, (caught.value.what, caught.value.why)
    return f"{caught.value.what}: {caught.value.where}: {caught.value.why}"


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
    assert "arrays that are no numbers" in refused(checkpoint(tmp_path / "x.zip", pickled))


def test_arrays_with_fields(tmp_path):
    pickled = pickle.dumps({"kernel": np.zeros(2, [("a", "f4")])})
    assert "arrays that are no numbers" in refused(checkpoint(tmp_path / "x.zip", pickled))


def numpy_pickle(shape, data=bytes(16), kind="f4", order="<", fortran=b"\x89"):
    """The pickle of an array that says of itself what it likes."""
    sizes = b"".join(b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in shape)
    return (
        b"\x80\x04" + by_global("numpy.core.multiarray", "_reconstruct")
        + by_global("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R(K\x01(" + sizes + b"t"
        + by_global("numpy", "dtype") + text(kind) + b"\x89\x88\x87R(K\x03" + text(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + fortran
        + b"B" + len(data).to_bytes(4, "little") + data + b"tb."
    )  # fmt: skip


def test_the_made_up_array_is_sound_otherwise(tmp_path):
    path = checkpoint(tmp_path / "x.zip", numpy_pickle((2, 2), np.arange(4, dtype="<f4").tobytes()))
    tensor = recognise(path).tensors["x"]
    assert tensor.read().tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (5,)},
        {"shape": (3,)},
        {"shape": (2**40,)},
        {"shape": (2**62, 4)},
        {"shape": (2**32, 2**32)},  # times 4 bytes it is nothing, in 64 bits
        {"shape": (-4,)},
        {"shape": (1,) * 33},
        {"shape": (4,), "order": "x"},
        {"shape": (4,), "fortran": b"N"},
        {"shape": (4,), "fortran": b"K\x02"},
    ],
)
def test_arrays_whose_bytes_do_not_fit(tmp_path, options):
    refused(checkpoint(tmp_path / "x.zip", numpy_pickle(**options)), CORRUPT)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x04}",
        b"\x80\x04N.",
        b"\x80\x04}.}.",  # a second pickle
        b"\x80\x04]\x94h\x00a.",  # holds itself
        b"\x80\x04}\x94\x8c\x01ah\x00s.",
        b"\x80\x04}(\x8c\x04a\x1b[mN" + b"u.",
        b"\x80\x04}(\x8c\x03../}u.",
        b"\x80\x04}(K\x01}u.",
        b"\x80\x04r\x00\x00\x00\x10.",  # memo without a stack
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.",  # a terabyte of bytes
        b"\x80\x04\x8d\x00\x00\x00\x00\x00\x01\x00\x00abc.",  # and of text
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x05\x97.",  # a buffer from elsewhere
        b"\x80\x05\x97\x98.",
        b"\xff.",
        b"\x80\x04" + by_global("numpy", "ndarray") + b".",
        b"\x80\x04" + by_global("numpy", "ndarray") + b")R.",
        b"\x80\x04" + by_global("numpy.core.multiarray", "_reconstruct") + b")R.",
        b"\x80\x04" + by_global("optax._src.base", "EmptyState") + b"(K\x01t\x81.",
        b"\x80\x04K\x01K\x02\x93.",
    ],
)
def test_broken_pickles(tmp_path, pickled):
    refused(checkpoint(tmp_path / "x.zip", pickled), CORRUPT)


def laughs(levels):
    """A tuple of two of the tuple before, so often that a walk through all would not end."""
    return b")" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(levels))


@pytest.mark.parametrize(
    "code",
    [
        laughs(60),
        b"}" + laughs(60) + b"K\x01s",
        laughs(60) + b")R",
        b"(" + laughs(60) + b"K\x01\x93",
        by_global("numpy", "dtype") + laughs(60) + b"\x85R",
        by_global("collections", "OrderedDict") + b"((" + laughs(60) + b"K\x01ttt\x85R",
        by_global("numpy.core.multiarray", "_reconstruct") + laughs(60) + b"R",
    ],
)
def test_a_tuple_that_is_two_to_the_sixty(tmp_path, code):
    with pytest.raises(Problem) as caught:
        recognise(checkpoint(tmp_path / "x.zip", b"\x80\x04" + code + b"."))
    assert caught.value.exit_code in (CORRUPT, UNSAFE)


def test_a_state_that_is_two_to_the_sixty(tmp_path):
    state = PLAIN_STATE.replace(b")u.", laughs(60) + b"u.")
    pickled = numpy_pickle((4,))
    contents = recognise(checkpoint(tmp_path / "x.zip", pickled, state))
    assert contents.notes == ["the optimiser's state is not kept: it has too many parts"]
    assert contents.moments() is None


def test_a_tree_that_is_two_to_the_sixty(tmp_path):
    doubled = b"}" + b"".join(
        b"q%c" % i + b"0}(\x8c\x01ah%c\x8c\x01bh%c" % (i, i) + b"u" for i in range(60)
    )
    pickled = b"\x80\x04" + doubled.replace(b"0}", b"}") + b"."
    refused(checkpoint(tmp_path / "x.zip", pickled), CORRUPT)


@pytest.mark.parametrize("form", [b"\x8c\x03abc0", b"}", b"N", b"]\x94", b"C\x01a", b"h\x00"])
def test_endless_pickles_stop(tmp_path, monkeypatch, form):
    monkeypatch.setattr(inflate, "HELD", 100_000)
    pickled = b"\x80\x04}\x94" + form * 10_000 + b"."
    with pytest.raises(Problem) as caught:
        recognise(checkpoint(tmp_path / "x.zip", pickled))
    assert caught.value.exit_code in (UNSAFE, CORRUPT)


@pytest.mark.parametrize("inner", [gzip.compress(b"\x80\x04}."), b"PK\x03\x04"])
def test_compressed_files_in_compressed_files(tmp_path, inner):
    path = checkpoint(tmp_path / "x.zip", inner)
    assert "within a compressed file" in refused(path, UNSAFE)


def test_a_bomb_that_is_no_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(inflate, "FREE", 1_000_000)
    path = checkpoint(tmp_path / "x.zip", bytes(20_000_000))
    assert "unpacks to far more" in refused(path, UNSAFE)


def test_damage_is_told_before_what_it_led_to(tmp_path):
    path = checkpoint(tmp_path / "x.zip", b"\xff" + bytes(100))
    assert "is no instruction" in refused(path, CORRUPT)
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("params/x.pkl.gz").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, b"abcd"))
    assert "its CRC is not" in refused(path, CORRUPT)


def test_a_step_that_is_no_number(tmp_path):
    for value in (b"N", b"\x88", b"J\xff\xff\xff\xff", text("7"), b"]"):
        state = PLAIN_STATE.replace(b"K\x03", value)
        refused(checkpoint(tmp_path / "x.zip", numpy_pickle((4,)), state), CORRUPT)
    for state in (b"\x80\x04}.", b"\x80\x04N.", b"\x80\x04}(\x8c\x04stepK\x03u."):
        refused(checkpoint(tmp_path / "x.zip", numpy_pickle((4,)), state), CORRUPT)


CODES = (CORRUPT, UNSAFE, MISMATCH, NO_SPACE)
GLOBALS = [by_global(*gadget) for gadget in GADGETS[-6:]] + [
    by_stack("numpy.core.multiarray", "_reconstruct"),
    by_stack("numpy", "ndarray"),
    by_stack("numpy", "dtype"),
    by_stack("numpy._core.numeric", "_frombuffer"),
    by_stack("numpy._core.multiarray", "scalar"),
    by_stack("optax._src.transform", "ScaleByAdamState"),
    by_stack("collections", "OrderedDict"),
    by_stack("jax._src.array", "_reconstruct_array"),
]
PIECES = st.sampled_from(
    [*GLOBALS, *(bytes([code]) for code in b")]}(t.RbuasN\x81\x85\x86\x87\x94h\x00K\x01\x88\x89"),
     text("f4"), text("<"), b"C\x04abcd", b"K\x01", b"K\x00\x85", b"\x96" + bytes(8)]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=40))
def test_no_program_crashes_the_machine(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("x")
    with suppress(Problem):
        recognise(checkpoint(folder / "x.zip", b"\x80\x04" + b"".join(pieces) + b"."))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_change_of_a_pickle_crashes_the_machine(tmp_path_factory, data):
    pickled = bytearray(numpy_pickle((2, 2)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(pickled) - 1))
        new = data.draw(st.binary(max_size=4))
        pickled[at : at + data.draw(st.integers(0, 4))] = new
    path = checkpoint(tmp_path_factory.mktemp("x") / "x.zip", bytes(pickled))
    report = bridge.inspect(path)
    assert report.problems
    with pytest.raises(Problem) as caught:
        bridge.open_source(path)  # one array of four numbers is no model
    assert caught.value.exit_code in CODES


def test_the_limits_are_what_they_say():
    assert inflate.FREE + inflate.HELD <= 2**29
    assert unpickle.MAX_STEPS <= 20_000_000


def test_nothing_else_is_read(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.pkl.gz": b"", "state_and_opt.pkl.gz": b""})
    assert "no checkpoint that is known" in refused(path, CORRUPT)
