"""`RawCheckpoint`: the content of a checkpoint, named tensors and the files beside them.

This knows nothing about models; `bridge/checkpoint/opening.py` interprets the names.

Facts in an upstream file that a Config has no place for are kept in `origin` (in the manifest of a
converted folder), so that converting back writes the same file; a value is replaced only if the
Config differs from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge.core.adapters import Base
from bridge.core.moments import Moments
from bridge.core.packing import Packed
from bridge.core.tensors import DIGESTS, Tensor, digest_of
from bridge.core.twins import twins
from bridge.formats.foreign import data_only
from bridge.formats.generation import drawing, read_generation
from bridge.formats.tokenizer import NO_TOKENIZER, as_transformers, find_tokenizer
from bridge.storage.safetensors_reader import SafetensorsArray, parse_json
from data_pipelines.tokenizers import CharTokenizer, Tokenizer
from data_pipelines.transformers_files import transformers_differs
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.manifest import MANIFEST, differing, digests, read_sealed


@dataclass
class RawCheckpoint:
    """A checkpoint's content, before any table of weight names is applied."""

    path: Path
    format: str
    """As in `jaxmodels convert --to`; "torch" for a bare state dict."""
    tensors: dict[str, Tensor]
    """Name in the checkpoint → tensor."""
    arch: str | None = None
    """The architecture, if the files name it."""
    preset: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """Config fields in the files, among other keys."""
    config: dict[str, Any] | None = None
    """The config of a class of transformers in the checkpoint's own file, like a config.json."""
    usual: dict[str, Any] = field(default_factory=dict)
    """The format's defaults for Config fields that its files do not have; reported as assumed."""
    tokenizer: Tokenizer | None = None
    tokenizer_inside: bool = False
    """Whether the tokeniser is in the same file as the tensors, and so certainly theirs."""
    unread: str = ""
    """Why a tokeniser beside the tensors was not read; if set, no default replaces it."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Step and metrics of a training run; under "seed", facts in files of the original program
    that a Config has no place for, to write them back."""
    notes: list[str] = field(default_factory=list)
    quantised: frozenset[str] = frozenset()
    """Names of tensors that are Q8_0 in the file, and read as float32."""
    packed: dict[str, Packed] = field(default_factory=dict)
    """Name → packed matrix, of tensors with 2 or 8 bits in the file, which are read as float32."""
    damaged: list[str] = field(default_factory=list)
    """Files that are needed to interpret the tensors, but whose digest is not the manifest's."""
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """The running average (EMA) that a run keeps of its tensors, under the same names."""
    base: Base | None = None
    """The base model of LoRA adapters. `tensors` are then adapters, named after its weights with
    the endings of `runtime/lora.py`, and parameters that replace its own."""
    in_files: dict[str, Tensor] = field(default_factory=dict)
    """The tensors as stored in the files, where `tensors` have other names and layouts."""
    table: str | None = None
    """The table that the names are from ("WEIGHTS", "own", …), if the format determines it."""
    moments: Callable[[], Moments | None] = lambda: None
    """Reads the optimiser's state, under the names of the tensors; None if there is none."""
    strange: dict[str, str] = field(default_factory=dict)
    """Name → the function that a torch file calls to make the object, which is not read."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Name → tensor of a run's state other than parameters; ignored if no table names it."""
    of_text: bool = False
    """Whether it is a language model that transformers' config.json describes: then special tokens
    in text are recognised, generation_config.json applies, and each row of the embedding is a
    token."""


def is_own(config: dict[str, Any]) -> bool:
    """Whether a config.json is ours, or saved by transformers from a modelling file of ours."""
    if config.get("arch") in tuple(jaxmodels.ARCHS):
        return True
    return config.get("model_type") in [arch for arch, side in twins() if side.FILES]


def describe(contents: RawCheckpoint, folder: Path) -> None:
    """Adds architecture, Config fields, origin and tokeniser from the files beside the tensors."""
    config = parse_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    # A run directory keeps the model's fields apart from the recipe's.
    if is_own(config):
        contents.fields = config["model"] if isinstance(config.get("model"), dict) else config
    arch, preset = config.get("arch"), config.get("preset")
    contents.arch = arch if isinstance(arch, str) else None
    contents.preset = preset if isinstance(preset, str) else None
    contents.origin = {**origin_of(folder), **contents.origin}
    take_tokenizer(contents, folder)


def take_tokenizer(contents: RawCheckpoint, folder: Path) -> None:
    """Adds the tokeniser in a folder, or the reason why it is not read."""
    rows = contents.fields.get("vocab")
    config = upstream_of(contents.origin, "nanogpt").get("config")
    dataset = config.get("dataset") if isinstance(config, dict) else None
    found, unread = find_tokenizer(folder, rows if type(rows) is int else None, dataset)
    if contents.of_text and found is not None:
        found = as_transformers(found)
    if found is not None and not isinstance(found, CharTokenizer):
        contents.notes += transformers_differs(folder, found.to_json)
    contents.tokenizer, contents.unread = found, unread


def complete(contents: RawCheckpoint, path: Path) -> None:
    """Adds what may accompany any format: a tokeniser, and settings for sampling."""
    folder = path if path.is_dir() else path.parent
    if contents.tokenizer is None and not contents.unread:
        try:
            take_tokenizer(contents, folder)
        except Problem as problem:
            if path.is_dir():
                raise
            contents.unread = f"{problem.what} ({problem.where})"
    if path.is_dir():
        reason = origin_of(path).get(NO_TOKENIZER)
        contents.unread = contents.unread or (reason if isinstance(reason, str) else "")
    if contents.of_text and (generation := read_generation(folder)):
        contents.origin = {**contents.origin, "generation": generation}


def origin_of(folder: Path) -> dict[str, Any]:
    """The origin of a model, as an earlier conversion recorded it."""
    manifest = parse_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    source = manifest.get("source")
    known = source if isinstance(source, dict) else {}
    # Anybody may have written it: only what `card` and the writers use is taken, if its type fits.
    origin: dict[str, Any] = {
        key: known[key] for key in ("step", "epoch") if type(known.get(key)) is int
    }
    for key in ("metrics", "seed"):
        if isinstance(known.get(key), dict):
            origin[key] = known[key]
    if isinstance(known.get(NO_TOKENIZER), str):
        origin[NO_TOKENIZER] = known[NO_TOKENIZER]
    if isinstance(known.get("data"), str):
        origin["data"] = known["data"]
    if known.get("weights") in ("ema", "raw"):  # of a run that keeps both (averages)
        origin["weights"] = known["weights"]
    if generation := drawing(known.get("generation")):
        origin["generation"] = generation
    return origin


def upstream_of(origin: dict[str, Any], name: str) -> dict[str, Any]:
    """The facts of a file in the format `name` that `with_upstream` kept; empty if none."""
    seed = origin.get("seed")
    found = seed.get(name) if isinstance(seed, dict) else None
    return data_only(name, found) if isinstance(found, dict) else {}


def with_upstream(origin: dict[str, Any], name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The origin with the facts of a file in the format `name`, to write them back."""
    seed = origin.get("seed")
    kept = data_only(name, config)
    return {**origin, "seed": {**(seed if isinstance(seed, dict) else {}), name: kept}}


# Endings of files that are needed to interpret the tensors. (Checksums inside are no protection.)
MEANING = (".json", ".pt", ".pth", ".zip", ".gguf", "meta.pkl")


def changed(folder: Path) -> list[str]:
    """Differences between our manifest and the files that are needed to interpret the tensors.

    Tensors in other files are compared one by one, see `checked`.
    """
    manifest = parse_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    promised = manifest.get("files")
    if not isinstance(promised, dict) or "tensors" not in manifest:  # somebody else's
        return []
    try:
        read_sealed(folder / MANIFEST)
    except ValueError:
        return [f"{MANIFEST} is damaged"]
    entries = {name: entry for name, entry in promised.items() if name.endswith(MEANING)}
    return differing(entries, digests(folder, lambda name: name in entries))


def checked(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each compared with its digest in the folder's manifest when it is read."""
    if not (folder / MANIFEST).is_file():
        return tensors
    promised = parse_json(folder / MANIFEST).get("tensors")
    entries = promised if isinstance(promised, dict) else {}
    return {
        name: replace(tensor, read=_Checked(folder, tensor, *digest))
        if (digest := _digest_in(entries.get(name)))
        else tensor
        for name, tensor in tensors.items()
    }


def _digest_in(entry: Any) -> tuple[str, Any] | None:
    """The name of the digest that an entry of a manifest has, and the digest."""
    known = DIGESTS.keys() & (entry.keys() if isinstance(entry, dict) else ())
    return next(((name, entry[name]) for name in sorted(known)), None)


def check(tensor: Tensor) -> None:
    """Reads the values and discards them; raises what reading raises."""
    if isinstance(tensor.read, _Checked):
        tensor.read.check()
    else:
        tensor.read()


@dataclass(frozen=True)
class _Checked:
    """Reads a tensor and compares it with the digest that a manifest promises."""

    folder: Path
    tensor: Tensor
    name: str  # of the digest
    promised: str

    def __call__(self) -> np.ndarray:
        array = self.tensor.read()
        self._compare(digest_of(array, self.name))
        return array

    def check(self) -> None:
        """The same, in pieces if the file can be read in pieces; nothing is kept."""
        if not isinstance(self.tensor.read, SafetensorsArray):
            self()
            return
        digest = DIGESTS[self.name]()
        for piece in self.tensor.read.pieces():
            digest.update(piece.data)
        self._compare(digest.hexdigest())

    def _compare(self, found: str) -> None:
        if found != self.promised:
            raise Problem(
                f"the tensor {self.tensor.name!r} is damaged",
                where=str(self.folder),
                why=f"its {self.name} is not the one in {MANIFEST}",
                fix="fetch or convert the model again",
                exit_code=CORRUPT,
            )
