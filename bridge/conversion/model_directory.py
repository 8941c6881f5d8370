"""The model directory: a model as PyTorch people expect it, and everything that goes with it."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.checkpoint.config import values_of
from bridge.checkpoint.opening import Checkpoint
from bridge.core.tensors import Fingerprint
from bridge.core.twins import twin
from bridge.formats.raw import upstream_of
from bridge.formats.tokenizer import drawing, ends, generation_config, padding, write_tokenizer
from jaxmodels.cli import visible
from jaxmodels.runtime.files import write_manifest
from jaxmodels.sizes import vocab_used


def describe_model(folder: Path, source: Checkpoint, dtype: str) -> None:
    """Writes config.json (architecture, preset, every field of the Config) and the tokeniser.

    Args:
        folder: an existing folder.
        source: the model.
        dtype: the dtype of its floating-point tensors, for transformers; "" leaves out what
            is for transformers.
    """
    values: dict[str, Any] = {
        "arch": source.arch,
        "preset": source.preset,
        **asdict(source.config),
    }
    if dtype:
        values |= {**_keys(source), "dtype": dtype}
    _write(folder / "config.json", values)
    if source.tokenizer is not None:
        source.tokenizer.save(folder)


def complete(
    folder: Path, source: Checkpoint, dtype: str, to: str = "safetensors", notes: Iterable[str] = ()
) -> None:
    """Writes all of a model directory (or transformers folder) but tensors and manifest.

    `notes` are what the model card says besides.
    """
    side = twin(source.arch)
    describe_model(folder, source, dtype)
    cls = side.TRANSFORMERS
    if cls and to == cls.format:
        path, keys = folder / "config.json", {**_keys(source), "dtype": dtype}
        _write(path, cls.written(keys, upstream_of(source.origin, to), path))
    if source.tokenizer is not None:
        write_tokenizer(folder, source.tokenizer, source.config.context)
    said = drawing(source.origin.get("generation"))
    if generation := generation_config(source.tokenizer, source.config, said):
        _write(folder / "generation_config.json", generation)
    for name, values in side.BESIDE.items():
        _write(folder / name, values)
    for file in side.FILES:
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(card(source, dtype, notes), encoding="utf-8")


def _keys(source: Checkpoint) -> dict[str, Any]:
    """transformers' keys; what ends a text is the tokeniser's affair."""
    keys = twin(source.arch).keys(source.config)
    return keys | {key: end for key, end in ends(source.tokenizer).items() if key in keys}


def promise(
    folder: Path, source: Checkpoint, tensors: dict[str, Fingerprint], files: dict[str, str]
) -> None:
    """Writes manifest.json: digests of every tensor and file, source and tool; the last file.

    Args:
        folder: all else that is to be in it.
        source: the model.
        tensors: tensor name → digest.
        files: file → sha256, of those that need not be read for it.
    """
    write_manifest(
        folder,
        {
            "tensors": tensors,
            "source": {
                "name": source.path.absolute().name,
                "format": source.format,
                **source.origin,
            },
            "tool": f"jaxmodels {jaxmodels.__version__}",
        },
        files,
    )


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
{"".join(f"{chr(10)}- {lack}" for lack in lacks)}
""".rstrip()
        + "\n"
    )


def differences(source: Checkpoint) -> str:
    """What the PyTorch class of a model computes otherwise than the model; mostly nothing."""
    return twin(source.arch).unlike(source.config)


def _loading(source: Checkpoint) -> str:
    """The card's part for who wants to use the model."""
    classes = auto = twin(source.arch).AUTO_CLASS
    # Only where a modelling file of ours lies there: of transformers' own classes nothing is run.
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


def _provenance(source: Checkpoint) -> str:
    lines = [
        f"Converted by jaxmodels {jaxmodels.__version__} from `{_plain(source.path)}`, ",
        f"an {source.format} checkpoint"
        if source.format == "orbax"
        else f"a {source.format} checkpoint",
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
    """The last part of a path, without what would end its place in the card."""
    return visible(path.absolute().name).replace("`", "'")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
