"""What a path holds: named tensors, and the files beside them.

Nothing here knows models; `bridge/checkpoint/opening.py` interprets the names.

What an upstream file says and a Config does not travels in `origin` (in the manifest of a converted
folder), so that the way back writes the same file. A value is replaced only where the Config
differs from it.
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
    """What a path holds, before any table is applied."""

    path: Path
    format: str
    """As in `jaxmodels convert --to`; "torch" for a bare state dict."""
    tensors: dict[str, Tensor]
    """Their name → tensor."""
    arch: str | None = None
    """Architecture, when the files say it."""
    preset: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """Config fields that the files say, among other keys."""
    config: dict[str, Any] | None = None
    """The config.json of transformers' class that the file itself holds, as what it says."""
    usual: dict[str, Any] = field(default_factory=dict)
    """What the format assumes for Config fields that its files do not give; reported."""
    tokenizer: Tokenizer | None = None
    tokenizer_inside: bool = False
    """Whether the tokeniser is in the same file as the tensors, and so surely theirs."""
    unread: str = ""
    """Why a tokeniser beside the tensors is not read; then no convention replaces it."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Step and metrics of a training run; under "seed" what a file of the original program
    says and a Config does not, to be written again."""
    notes: list[str] = field(default_factory=list)
    quantised: frozenset[str] = frozenset()
    """Names of those tensors that are Q8_0 in the file, and read as float32."""
    packed: dict[str, Packed] = field(default_factory=dict)
    """Name → matrix of those tensors that are in few bits in the file, and read as float32."""
    damaged: list[str] = field(default_factory=list)
    """Files whose digest differs from the manifest's, of those that give the tensors a meaning."""
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """The running average (EMA) that a run keeps of its tensors, under the same names."""
    base: Base | None = None
    """Of LoRA adapters, their base model; `tensors` are then adapters under the names of its
    weights with the endings of `runtime/lora.py`, and parameters that replace its own."""
    in_files: dict[str, Tensor] = field(default_factory=dict)
    """The tensors as the files have them, where `tensors` have other names and layouts."""
    table: str | None = None
    """Whose names these are, "WEIGHTS", "own" and so on, when the format says it."""
    moments: Callable[[], Moments | None] = lambda: None
    """Reads the optimiser's state that lies with the tensors, under their names."""
    strange: dict[str, str] = field(default_factory=dict)
    """Their name → the function that a torch file calls to make the object, which is not read."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Their name → tensor of a run's state apart from the parameters; those that the model's
    tables do not name are its own affair."""
    of_text: bool = False
    """A language model that transformers' config.json describes: special tokens in a text are
    tokens, generation_config.json counts, and every row of the embedding is a token."""


def is_own(config: dict[str, Any]) -> bool:
    """Whether a config.json is ours, or saved by transformers from a modelling file of ours."""
    if config.get("arch") in tuple(jaxmodels.ARCHS):
        return True
    return config.get("model_type") in [arch for arch, side in twins() if side.FILES]


def describe(contents: RawCheckpoint, folder: Path) -> None:
    """Adds what the files beside the tensors say."""
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
    """Adds what any format may have beside it: a tokeniser, and settings for sampling."""
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
    """What an earlier conversion recorded about where the model comes from."""
    manifest = parse_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    source = manifest.get("source")
    known = source if isinstance(source, dict) else {}
    # Anybody may have written it: what `card` and the writers use is taken, in its types.
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
    """What a file in the format `name` said, as `with_upstream` kept it; else empty."""
    seed = origin.get("seed")
    found = seed.get(name) if isinstance(seed, dict) else None
    return data_only(name, found) if isinstance(found, dict) else {}


def with_upstream(origin: dict[str, Any], name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The origin with what a file in the format `name` says, to be written again."""
    seed = origin.get("seed")
    kept = data_only(name, config)
    return {**origin, "seed": {**(seed if isinstance(seed, dict) else {}), name: kept}}


# Endings of files that say what the tensors mean; a checksum inside can be made to fit a change.
MEANING = (".json", ".pt", ".pth", ".zip", ".gguf", "meta.pkl")


def changed(folder: Path) -> list[str]:
    """Differences between our manifest and the files that give the tensors a meaning.

    The tensors of others are compared one by one, see `checked`.
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
    """Reads the values and lets them go; raises what reading raises."""
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
        """The same, in pieces where the file can be read so; nothing is kept."""
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
