"""Broken, endless and malicious pickles are refused in bounded time and memory."""

import gzip
import json
import subprocess
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.formats import recognise
from bridge.legacy import budget, unpickle
from jaxmodels.errors import CORRUPT, MISMATCH, NO_SPACE, UNSAFE, Problem
from tests.bridge.zips import (
    PLAIN_STATE,
    by_global,
    by_stack,
    checkpoint,
    numpy_pickle,
    refused,
    text,
    write_zip,
)

pytestmark = pytest.mark.usefixtures("readers_here")


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
    monkeypatch.setattr(budget, "FREE", 100_000)
    pickled = b"\x80\x04}\x94" + form * 10_000 + b"."
    with pytest.raises(Problem) as caught:
        recognise(checkpoint(tmp_path / "x.zip", pickled))
    assert caught.value.exit_code in (UNSAFE, CORRUPT)


def test_a_number_of_a_million_digits(tmp_path):
    path = checkpoint(tmp_path / "x.zip", b"I" + b"1" * 1_000_000 + b"\n.")
    assert "unpacks to far more" in refused(path, UNSAFE)


@pytest.mark.parametrize(
    "inner", [gzip.compress(b"\x80\x04}."), b"PK\x03\x04"], ids=["gzip", "zip"]
)
def test_compressed_files_in_compressed_files(tmp_path, inner):
    path = checkpoint(tmp_path / "x.zip", inner)
    assert "in a compressed file" in refused(path, UNSAFE)


def test_a_bomb_that_is_no_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "FREE", 1_000_000)
    path = checkpoint(tmp_path / "x.zip", bytes(20_000_000))
    assert "unpacks to far more" in refused(path, UNSAFE)


def test_damage_is_told_before_what_it_led_to(tmp_path):
    path = checkpoint(tmp_path / "x.zip", b"\xff" + bytes(100))
    assert "is not an instruction" in refused(path, CORRUPT)
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
GLOBALS = [
    by_global("os", "system"),
    by_global("numpy", "load"),
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
        bridge.open_checkpoint(path)  # one array of four numbers is no model
    assert caught.value.exit_code in CODES


def test_the_limits_are_what_they_say():
    assert budget.FREE <= 2**28
    assert unpickle.MAX_STEPS <= 2_000_000


# What a reader may take at most, in a process that the system holds to it.
LIMITED = """
import json, resource, sys
from bridge.formats import recognise
from jaxmodels.errors import Problem
from tests.bridge.helpers import in_this_process
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + 300_000_000
resource.setrlimit(resource.RLIMIT_AS, (most, most))
spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
resource.setrlimit(resource.RLIMIT_CPU, (spent + 10, spent + 10))
from pathlib import Path
try:
    with in_this_process():
        recognise(Path(sys.argv[1]))
except Problem as problem:
    print(json.dumps([problem.exit_code, problem.why]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dicts.pt", "marks.pt", "numbers.pt", "packed.zip"])
def test_the_longest_pickles_are_refused_within_limits_of_the_system(tmp_path, name):
    instruction = {"dicts.pt": b"}", "marks.pt": b"(", "numbers.pt": b"K\x01"}.get(name, b"}")
    pickled = b"\x80\x04" + instruction * 20_000_000
    path = tmp_path / name
    if path.suffix == ".zip":
        checkpoint(path, pickled)
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x/data.pkl", pickled)
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    code, why = json.loads(done.stdout)
    # What unpacks to a thousand times its size is not looked at further.
    assert code == (UNSAFE if path.suffix == ".zip" else CORRUPT)
    assert code == UNSAFE or "more than 2,000,000 steps" in why


def test_nothing_else_is_read(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.pkl.gz": b"", "state_and_opt.pkl.gz": b""})
    assert "not a checkpoint of a known format" in refused(path, CORRUPT)
