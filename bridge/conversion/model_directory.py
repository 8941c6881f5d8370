"""The model directory: the layout that PyTorch users expect, and the files beside the weights."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.config import values_of
from bridge.core.packing import Packed
from bridge.core.tensors import FLOATS, Tensor, is_float
from bridge.core.twins import twin
from bridge.formats.format import Format
from bridge.formats.generation import caption_ends, drawing, ends, generation_config
from bridge.formats.packed import config_entry
from bridge.formats.raw import upstream_of
from bridge.formats.tokenizer import padding, write_tokenizer
from jaxmodels.cli import visible
from jaxmodels.sizes import vocab_used

CONFIG = "config.json"
SAVED = "jax"  # the format of a model that comes from no file


def dtype_of(source: Checkpoint, tensors: Mapping[str, Tensor]) -> str:
    """The dtype stated for transformers: that of the parameters; float32 if they have several.

    `tensors` maps our paths to the tensors that are written.
    """
    trained = (tensor for path, tensor in tensors.items() if path not in source.state)
    dtypes = {str(tensor.dtype) for tensor in trained if is_float(tensor.dtype)}
    return dtypes.pop() if len(dtypes) == 1 else FLOATS[0]


def write_beside(
    folder: Path,
    source: Checkpoint,
    format: Format,
    dtype: str,
    notes: Iterable[str] = (),
    packed: Mapping[str, Packed] = MappingProxyType({}),
) -> None:
    """Writes the files of a model directory, or of a folder for transformers, besides its tensors,
    the tokeniser's own file and the manifest.

    Args:
        folder: an existing folder.
        source: the model.
        format: which of the two.
        dtype: of its parameters.
        notes: further lines of the model card.
        packed: name in the files → matrix of those in few bits.
    """
    side = twin(source.arch)
    entry = config_entry(packed) if packed else {}
    _write(folder / CONFIG, config_json(folder, source, format, dtype) | entry)
    if source.tokenizer is not None:
        write_tokenizer(folder, source.tokenizer, source.config.context, side.TOKENIZER)
    known = caption_ends(source.arch, source.tokenizer) | drawing(source.origin.get("generation"))
    if generation := generation_config(source.tokenizer, source.config, known):
        _write(folder / "generation_config.json", generation)
    for name, values in side.beside(source.config, source.tokenizer is not None).items():
        _write(folder / name, values)
    for file in side.FILES:
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(card(source, dtype, notes), encoding="utf-8")


def config_json(folder: Path, source: Checkpoint, format: Format, dtype: str) -> dict[str, Any]:
    """config.json in transformers' own form; in a model directory our fields and its keys."""
    keys = {**_keys(source), "dtype": dtype}
    cls = twin(source.arch).TRANSFORMERS
    if cls and format.name == cls.format:
        return cls.written(keys, upstream_of(source.origin, cls.format), folder / CONFIG)
    return description(source) | keys


def description(source: Checkpoint) -> dict[str, Any]:
    """A config.json of ours: architecture, preset and every field of the Config."""
    return {"arch": source.arch, "preset": source.preset, **asdict(source.config)}


def _keys(source: Checkpoint) -> dict[str, Any]:
    """transformers' keys, without the token that ends a text: the tokeniser's files name it."""
    keys = twin(source.arch).keys(source.config)
    return keys | {key: end for key, end in ends(source.tokenizer).items() if key in keys}


def card(source: Checkpoint, dtype: str, notes: Iterable[str] = ()) -> str:
    """The model card, README.md: what it is, where it comes from, how to load it."""
    preset = f", preset {source.preset}" if source.preset else ""
    sizes = "\n".join(f"| {name} | {value} |" for name, value in values_of(source.config).items())
    lacks = [
        f"`{name} = {value}` was assumed: the source does not say it."
        for name, value in source.assumed.items()
    ]
    lacks += [f"{note[0].upper()}{note[1:]}." for note in notes]
    if source.tokenizer is None and vocab_used(source.config):
        lacks.append("The vocabulary is missing: token ids work, text does not.")
    if unlike := differences(source):
        lacks.append(f"{unlike[0].upper()}{unlike[1:]}.")
    if rows := padding(source.config):
        lacks.append(
            f"Rows {rows[0]} to {rows[-1]} of the embedding are "
            "padding, kept bit for bit; generation_config.json suppresses them."
        )
    return (
        f"""---
library_name: transformers
license: unknown
tags: [{source.arch}, jaxmodels]
---

# {source.arch}{preset}

A {source.arch} model of {source.parameters:,} parameters, {dtype}.

| size | value |
|---|---|
{sizes}

## Where it comes from

{_provenance(source)}

The licence is that of whoever trained it; set the `license` field above before publishing.

{_loading(source)}
{_usage(source)}{"".join(f"{chr(10)}- {lack}" for lack in lacks)}
""".rstrip()
        + "\n"
    )


def differences(source: Checkpoint) -> str:
    """How the PyTorch class of a model computes differently; empty for most."""
    return twin(source.arch).unlike(source.config)


def _loading(source: Checkpoint) -> str:
    """The section of the card on how to load and use the model."""
    classes = auto = twin(source.arch).AUTO_CLASS
    # Only with a modelling file of ours: transformers' own classes need no code from the folder.
    given = '"PATH", trust_remote_code=True' if twin(source.arch).FILES else '"PATH"'
    tokenizer = ""
    if source.tokenizer is not None:
        classes = f"{auto}, AutoTokenizer"
        tokenizer = f"\ntokenizer = AutoTokenizer.from_pretrained({given})"
    return f"""## How to load it

PyTorch:

```python
from transformers import {classes}
model = {auto}.from_pretrained({given}){tokenizer}
```

JAX:

```python
import bridge
model = bridge.load("PATH")
```

`jaxmodels verify PATH` checks every digest in `manifest.json`, and JAX against PyTorch."""


def _usage(source: Checkpoint) -> str:
    """The card's snippets; empty where the twin has none."""
    usage = twin(source.arch).usage(source.config, source.tokenizer is not None)
    return f"\n{usage}\n" if usage else ""


def _provenance(source: Checkpoint) -> str:
    if source.format == SAVED:
        return f"Saved by jaxmodels {jaxmodels.__version__}."
    article = "an" if source.format[0] in "aeio" else "a"
    lines = [
        f"Converted by jaxmodels {jaxmodels.__version__} from `{_plain(source.path)}`, ",
        f"{article} {source.format} checkpoint",
    ]
    if "step" in source.origin:
        lines.append(f", step {source.origin['step']}")
    metrics = source.origin.get("metrics") or {}
    lines += [
        f", {name} {value:.4f}"
        for name, value in metrics.items()
        if isinstance(value, float) and name.isidentifier()
    ]
    return "".join(lines) + "."


def _plain(path: Path) -> str:
    """The last part of a path, without characters that mean something in Markdown or YAML."""
    return visible(path.absolute().name).replace("`", "'")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
