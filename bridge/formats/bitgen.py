"""BitGen Stage 1's checkpoints: the trainer's file with model, optimiser and schedule, or the
model's state dict alone.

Source: euhidaman/BitGen ( `train_stage1_vision_language.py`). The container holds a
pickled `Stage1Config`, a plain dataclass that is read as its fields and never looked up.

In files that we write the config is a plain dict, which `torch.load` reads with its safe default.
"""

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge.core.tensors import Tensor
from bridge.core.twins import as_torch
from bridge.formats.bitgen_optimizer import read_moments, state_dicts
from bridge.formats.format import Format, Output
from bridge.formats.raw import RawCheckpoint, upstream_of, with_upstream
from jaxmodels.errors import MISMATCH, Problem

STATE = "model_state_dict"
# Tensors that no other model has.
_OWN = ("cross_modal_fusion.queue_ptr", "episodic_memory.gpm.memory_mean")

# Field of Stage1Config → field of our Config. `queue_size` and `temperature` say nothing: the
# trainer never reads them.
FIELDS = {
    "embed_dim": "dim",
    "num_layers": "layers",
    "num_heads": "heads",
    "ffn_dim": "hidden",
    "vocab_size": "vocab",
    "memory_size": "slots",
    "max_seq_len": "context",
}
# transformers 5's names in the tower → transformers 4's, which Stage 1 was written with.
_FOUR = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}
_FIVE = re.compile(r"(?<=\.attention\.)[qkvo]_proj(?=\.(?:weight|bias)$)")


def is_checkpoint(value: Any) -> bool:
    """Whether the content of a torch file is a Stage 1 checkpoint."""
    state = value.get(STATE, value) if isinstance(value, dict) else None
    names = [name for name in state if isinstance(name, str)] if isinstance(state, dict) else []
    return all(any(name.endswith(own) for name in names) for own in _OWN)


def contents(
    path: Path, value: dict[str, Any], tensors: dict[str, Tensor], notes: list[str]
) -> RawCheckpoint:
    """What a checkpoint holds.

    Args:
        path: the file.
        value: what it holds.
        tensors: name → tensor of its state dict.
        notes: notes so far.
    """
    found, notes = {}, list(notes)
    # DistributedDataParallel puts "module." before every name.
    prefix = next(name for name in tensors if name.endswith(_OWN[0])).removesuffix(_OWN[0])
    if prefix:
        notes.append(f"the prefix {prefix!r}, left by a module around this one, was removed")
    for old, tensor in tensors.items():
        name = old.removeprefix(prefix)
        if "dinov2_model." in name:
            name = _FIVE.sub(lambda found: _FOUR[found[0]], name)
        found[name] = replace(tensor, name=name)
    settings = _plain(value.get("config"))
    return RawCheckpoint(
        path,
        "bitgen",
        found,
        arch="bitgen_stage1",
        fields={ours: settings[theirs] for theirs, ours in FIELDS.items() if theirs in settings},
        origin=_origin(value, settings),
        notes=notes,
        table="UPSTREAM",
        moments=partial(read_moments, path, found, value.get("optimizer_state_dict")),
    )


def _origin(value: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The step and metrics of training, and the trainer's settings."""
    known: dict[str, Any] = with_upstream({}, "bitgen", {"config": settings}) if settings else {}
    for theirs, ours in (("global_step", "step"), ("epoch", "epoch")):
        if type(value.get(theirs)) is int:
            known[ours] = value[theirs]
    metrics = _plain(value.get("metrics"))
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    if finite := {k: v for k, v in numbers.items() if math.isfinite(v)}:
        known["metrics"] = finite
    return known


def _plain(value: Any) -> dict[str, Any]:
    """The entries of a dict that JSON can hold unchanged."""
    items = value.items() if isinstance(value, dict) else ()
    plain = str | int | float | bool | None
    return {key: item for key, item in items if isinstance(key, str) and isinstance(item, plain)}


def file_name(origin: dict[str, Any]) -> str:
    """The file's name, as the trainer gives it."""
    return f"checkpoint-{origin.get('step', 0)}.pt"


def check_config(config: Any, where: Path) -> None:
    """Checks that BitGen's own code can compute a model; `where` names it in errors.

    Raises:
        Problem: (mismatch) it cannot.
    """
    fixed = {
        "decoder_layers": (config.decoder_layers, 2),
        "queue": (config.queue, 4096),
        "image_size": (config.image_size, 224),
    }
    complaints = [
        f"{name} is {value}; its code has {right}"
        for name, (value, right) in fixed.items()
        if value != right
    ]
    if complaints:
        raise Problem(
            "BitGen Stage 1's code cannot compute this model",
            where=str(where),
            why="; ".join(complaints),
            fix="use --to safetensors",
            exit_code=MISMATCH,
        )


def write(output: Output) -> None:
    """Writes `checkpoint-STEP.pt` as its trainer does; holds the whole model in memory.

    Its configuration is a plain dict instead of a pickled class, so that `torch.load` reads the
    file unmodified. Without `moments` the optimiser is in its initial state.
    """
    import torch

    config, origin = output.config, output.origin
    state = {name: as_torch(output.read(tensor)) for name, tensor in output.tensors.items()}
    was = _plain(upstream_of(origin, "bitgen").get("config"))
    sizes = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    optimizer, scheduler = state_dicts(output.tensors, output.moments, was)
    torch.save(
        {
            "global_step": origin.get("step", 0),
            "epoch": origin.get("epoch", 0),
            STATE: state,
            "optimizer_state_dict": optimizer,
            "scheduler_state_dict": scheduler,
            "config": {**was, **sizes, "head_dim": config.dim // config.heads},
        },
        output.folder / file_name(origin),
    )


FORMAT = Format(
    "bitgen",
    "BitGen Stage 1's `checkpoint-N.pt` or `pytorch_model.bin`",
    write=write,
    needs="torch",
    arch="bitgen_stage1",
    file=file_name,
    check=check_config,
)
