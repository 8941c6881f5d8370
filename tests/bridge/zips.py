"""Zips of gzipped pickles, sound and hostile, made by hand."""

import gzip
import zipfile
from pathlib import Path

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
