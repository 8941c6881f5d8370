"""Checkpoints for tests: the golden one, and small ones made on the spot."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import orbax.checkpoint as ocp

import jaxmodels
from bridge import sandbox
from bridge.sandbox import client, codec, worker
from bridge.storage.orbax import read_tree
from jaxmodels.__main__ import main
from jaxmodels.runtime.manifest import write_manifest
from jaxmodels.runtime.paths import nest, params_of, split
from jaxmodels.runtime.runs.rundir import identity
from jaxmodels.sizes import outline
from tests.contract import smallest

GOLDEN = Path(__file__).parents[1] / "golden" / "charlm"
SEED = GOLDEN / "orbax"
HEADS = {"heads": 4}

CHARS = set("\n !,.?abcdefghijklmnopqrstuvwxyzäß漢🎉")


def vocabulary(size: int = 64) -> dict:
    """A vocabulary of `size` entries in the form of the seed's tokeniser."""
    filling = [chr(0x100 + i) for i in range(size)]
    chars = sorted([*CHARS, *filling[: size - 2 - len(CHARS)]])
    to_int = {character: i for i, character in enumerate(chars, start=2)}
    return {
        "special_tokens": {"<PAD>": 0, "<UNK>": 1},
        "min_freq": 1,
        "chars": chars,
        "vocab_size": size,
        "char_to_int": to_int,
        "int_to_char": {"0": "<PAD>", "1": "<UNK>", **{str(i): c for c, i in to_int.items()}},
    }


def sizes_of(spec: str) -> Any:
    """The Config that a spec such as "charlm:tiny" means; "bitgen:smallest" is `smallest`'s."""
    arch, _, preset = spec.partition(":")
    return smallest(arch) if preset == "smallest" else jaxmodels.preset(spec)[2]


def random_params(spec: str = "charlm:tiny", seed: int = 0) -> dict[str, np.ndarray]:
    """Path → random values: large enough that every mistake shows in the outputs."""
    rng = np.random.default_rng(seed)
    model = outline(jaxmodels.arch(spec.partition(":")[0]), sizes_of(spec))
    return {
        path: (rng.standard_normal(leaf.shape) * 0.2).astype(np.float32)
        for path, leaf in params_of(model).items()
    }


def random_state(spec: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Path → what a model remembers besides its parameters; floats are random."""
    rng = np.random.default_rng([seed, 1])
    model = outline(jaxmodels.arch(spec.partition(":")[0]), sizes_of(spec))
    return {
        path: rng.random(leaf.shape).astype(np.float32)
        if leaf.dtype == np.float32
        else np.full(leaf.shape, 3, leaf.dtype)
        for path, leaf in split(model)[2].items()
    }


def seed_tree() -> dict[str, np.ndarray]:
    """The golden checkpoint as path → array, in the seed's names."""
    tensors, _ = read_tree(SEED)
    return {name.replace(".", "/"): tensor.read() for name, tensor in tensors.items()}


def save_tree(folder: Path, flat: dict[str, np.ndarray]) -> Path:
    """Orbax checkpoint of path → array."""
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder, nest(flat))
    return folder


def write_run(
    folder: Path, losses: dict[int, float | None], vocab: bool = True, spec: str = "charlm:tiny"
) -> Path:
    """A run directory as `train` writes it; the parameters of step n are drawn with seed n."""
    arch, config = spec.partition(":")[0], sizes_of(spec)
    folder.mkdir()
    described = {"arch": arch, "preset": "tiny", "model": asdict(config), "recipe": {}}
    (folder / "config.json").write_text(json.dumps(described))
    if vocab:
        text = json.dumps(vocabulary(config.vocab), ensure_ascii=True)
        (folder / "characters.json").write_text(text)
    for step, loss in losses.items():
        target = folder / "checkpoints" / str(step)
        target.mkdir(parents=True)
        save_tree(target / "params", random_params(spec, seed=step))
        rest = {f"rest/{path}": np.asarray(x) for path, x in random_state(spec, step).items()}
        save_tree(target / "train", {"step": np.asarray(step), **rest})
        (target / "data.json").write_text("{}")
        metrics = {} if loss is None else {"valid_loss": loss}
        manifest = {"step": step, "metrics": metrics, "run": identity(folder)}
        write_manifest(target, manifest)
    return folder


def assert_same_params(model: object, params: dict[str, np.ndarray]) -> None:
    """Every parameter of the module has exactly these values."""
    found = params_of(model)
    assert found.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(np.asarray(found[path]), array, err_msg=path)


def flip(path: Path, at: float = 0.7) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)


def command(capsys, *argv):
    """Exit code, JSON on standard output (None if there is none), standard error."""
    capsys.readouterr()
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out.startswith("{") else out, err


def read_here(kind, path, *options):
    """`sandbox.read` without a process of its own."""
    value, tensors = worker.reader(kind)(path, *options)
    return codec.decode(json.loads(json.dumps(value)), lambda n, *_: tensors[n].read(), 2**60)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Meanwhile readers run here, where they can be watched, and faster for many small files."""
    uncached = client._names.__wrapped__
    with (
        patch.object(sandbox, "read", read_here),
        patch.multiple(client, read=read_here, _names=uncached),
    ):
        yield
