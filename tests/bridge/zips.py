"""Zips of gzipped pickles, sound and hostile, and how the seed loads them."""

import gzip
import pickle
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bridge.formats import recognise
from jaxmodels.errors import UNSAFE, Problem

STATE = "state_and_opt.pkl.gz"
# {"step": 3, "opt_state": ()}
PLAIN_STATE = b"\x80\x04}(\x8c\x04stepK\x03\x8c\x09opt_state)u."


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of these members as they are."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def checkpoint(path: Path, pickled: bytes, state: bytes = PLAIN_STATE, **others: bytes) -> Path:
    """A checkpoint whose one parameter is what `pickled` says."""
    members = {STATE: state, "params/x.pkl.gz": pickled}
    return write_zip(path, {name: gzip.compress(data) for name, data in members.items()} | others)


def unpacked(path: Path) -> dict[str, bytes]:
    """The pickles in a zip."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gz")]
        return {name: gzip.decompress(archive.read(name)) for name in names}


def packed(path: Path, pickles: dict[str, bytes]) -> Path:
    """The reverse of `unpacked`."""
    return write_zip(path, {name: gzip.compress(data, 1) for name, data in pickles.items()})


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def by_global(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def by_stack(module, name):
    return text(module) + text(name) + b"\x93"


def refused(path, code=UNSAFE):
    with pytest.raises(Problem) as caught:
        recognise(path)
    assert caught.value.exit_code == code, (caught.value.what, caught.value.why)
    return f"{caught.value.what}: {caught.value.where}: {caught.value.why}"


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


GOLDEN = Path(__file__).parents[1] / "golden" / "wigip"
ZIP = GOLDEN / "step_7.zip"


def seeds_loader(path, folder):
    """As the seed's code loads a checkpoint: unpacked, each pickle loaded by Python."""
    shutil.unpack_archive(path, folder, "zip")
    found = {}
    for file in sorted(folder.rglob("*.pkl.gz")):
        with gzip.open(file, "rb") as stream:
            found[str(file.relative_to(folder))] = pickle.load(stream)
    return found


def same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (np.shape(x), np.asarray(x).dtype) == (np.shape(y), np.asarray(y).dtype)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def resaved(path, change, protocol=4):
    """The golden checkpoint with each of its values changed, as Python pickles them."""
    values = {name: pickle.loads(data) for name, data in unpacked(ZIP).items()}
    pickles = {name: pickle.dumps(value, protocol) for name, value in change(values).items()}
    return packed(path, pickles)


def params_of(values):
    return {
        name.removeprefix("params/").removesuffix(".pkl.gz"): value
        for name, value in values.items()
        if name != STATE
    }


def plain_blocks(values):
    return {name.replace("Checkpoint", ""): value for name, value in values.items()}
