"""Saves a model in memory as a model directory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint, preset_of
from bridge.checkpoint.loading import source_of
from bridge.checkpoint.opening import bind, open_checkpoint
from bridge.conversion.model_directory import SAVED
from bridge.conversion.packed_plan import packed_in
from bridge.conversion.plan import make_plan
from bridge.conversion.preflight import check_format, check_space, check_target
from bridge.conversion.readback import check_written
from bridge.conversion.report import report_of_output, report_of_plan
from bridge.conversion.writing import write
from bridge.core.report import Report
from bridge.core.state import state_shapes
from bridge.core.tensors import Tensor
from bridge.formats import recognise, target
from bridge.storage.safetensors_writer import parse_size
from jaxmodels.errors import USAGE, Problem
from jaxmodels.files import atomic_folder
from jaxmodels.sizes import vocab_used

# Facts on the origin that stay true if the model was changed since.
_LASTING = ("data", "generation", "seed")


def save(
    model: Any,
    path: str | Path,
    like: str | Path | None = None,
    force: bool = False,
    max_shard_size: str | int = "5GB",
) -> Report:
    """Writes a model in memory as a model directory, which `bridge.load` opens again.

    Parameters and state keep their dtypes; a packed model stays packed. A model from `bridge.load`
    is written with the tokeniser of the checkpoint that it was loaded from.

    Args:
        model: an `nnx.Module` of a registered architecture; it may have been changed.
        path: the folder to create.
        like: the checkpoint whose tokeniser is copied; by default the one that the model was
            loaded from.
        force: replace an earlier output.
        max_shard_size: safetensors files are split above this size.

    Returns:
        the same report as `bridge.convert`.

    Raises:
        Problem: (usage) the model's architecture is not registered, or its parameters do not match
            its config; (exists) something is at `path`; (no space) the disk is too small.
    """
    path = Path(path)
    source = _in_memory(model, None if like is None else open_checkpoint(like))
    format = target("packed" if source.packed else "safetensors")
    check_format(format, source)
    plan = make_plan(source, format, "keep", (), parse_size(max_shard_size))
    report = report_of_plan(source, path, plan, None)
    check_target(path, force)
    check_space(report)
    with atomic_folder(path, force) as folder:
        report["notes"] += write(folder, source, plan, None, lambda _: None)
        contents = recognise(folder)
        written = bind(contents)
        checks = check_written(contents, written, source, plan, None, "digest")
    return Report(report | report_of_output(path, plan, checks), verified="digest")


def _in_memory(model: Any, like: Checkpoint | None) -> Checkpoint:
    """A model in memory as a `Checkpoint`, with the tokeniser of the one that it came from."""
    from jaxmodels.runtime.paths import split, unstack
    from jaxmodels.sizes import parameter_shapes

    package, config = jaxmodels.package_of(model), model.config
    _, params, rest = split(model)
    named = state_shapes(package.name, config)
    tensors = {p: _tensor(p, x) for p, x in unstack(params, package.SCANNED).items()}
    state = {path: _tensor(path, rest[path]) for path in named if path in rest}
    trained = parameter_shapes(package.name, config)
    packed = packed_in(package, rest, {p: s for p, s in trained.items() if p not in tensors})
    tensors |= {p: pair.load(each.unpacked(), trained[p]) for p, (pair, each) in packed.items()}
    shapes = trained | named
    found = {path: tensor.shape for path, tensor in (tensors | state).items()}
    if wrong := sorted(p for p in found.keys() | shapes if found.get(p) != shapes.get(p)):
        raise Problem(
            "the model's arrays are not those of its config",
            where=f"{package.name}: {', '.join(wrong[:5])}",
            fix="make a model of the right sizes, and give it these arrays",
            exit_code=USAGE,
        )
    checkpoint = Checkpoint(
        path=Path(package.name),
        format=SAVED,
        arch=package.name,
        preset=preset_of(package, config),
        config=config,
        assumed={},
        pairs=[],
        tensors=tensors | state,
        state=frozenset(state),
        packed={path: each for path, (_, each) in packed.items()},
        tokenizer=None,
        origin={},
        notes=[],
    )
    origin = like or source_of(model)
    if origin is None or origin.arch != package.name:
        return checkpoint
    return replace(
        checkpoint,
        path=origin.path,
        tokenizer=origin.tokenizer if vocab_used(origin.config) == vocab_used(config) else None,
        carried=origin.carried,
        origin={key: origin.origin[key] for key in _LASTING if key in origin.origin},
    )


def _tensor(path: str, array: Any) -> Tensor:
    dtype = np.dtype(array.dtype)
    return Tensor(path, tuple(array.shape), dtype, lambda: np.asarray(array))
