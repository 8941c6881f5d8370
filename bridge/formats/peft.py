"""LoRA adapters as PEFT saves them for a model of transformers.

`adapter_config.json` describes them and names the base model (`base_model_name_or_path`).
`adapter_model.safetensors` has for each module `base_model.model.<module>.lora_A.weight`
[rank, inputs] and `….lora_B.weight` [outputs, rank]; the module computes x W + scale · x A B.
"""

import json
import math
from pathlib import Path

import numpy as np

from bridge.core.adapters import Adapters, Base
from bridge.core.table import listing
from bridge.core.tensors import Tensor
from bridge.formats.format import Format, Output
from bridge.formats.raw import RawCheckpoint, checked, describe, is_own
from bridge.storage.safetensors_reader import parse_json, read_file
from bridge.storage.safetensors_writer import write_file
from jaxmodels.errors import MISMATCH, Problem
from jaxmodels.runtime.lora import A, B

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODEL = "jaxmodels.json"
"""The model's architecture and Config, which are not in PEFT's files."""
_START, _ENDS = "base_model.model.", {".lora_A.weight": A, ".lora_B.weight": B}
# Values of init_lora_weights that leave the base model unchanged; pissa, loftq and the like
# subtract the initial adapters from it.
_PLAIN_BEGINNINGS = ("gaussian", "eva", "orthogonal")
# Settings of other kinds of adapters, which compute something different.
_OTHERS = ("alora_invocation_tokens", "alpha_pattern", "layer_replication", "lora_bias",
           "modules_to_save", "rank_pattern", "target_parameters", "trainable_token_indices",
           "use_bdlora", "use_dora", "use_qalora", "kasa_config", "velora_config")  # fmt: skip


def is_folder(folder: Path) -> bool:
    """Whether a folder holds adapters, and no model beside them."""
    there = all((folder / name).is_file() for name in (CONFIG, TENSORS))
    return there and not (folder / "config.json").exists()


def open_folder(folder: Path) -> RawCheckpoint:
    """The adapters in a folder.

    Raises:
        Problem: (corrupt) damaged; (mismatch) they are not plain LoRA, or their base is not a
            folder.
    """
    config = parse_json(folder / CONFIG)
    if other := [name for name in _OTHERS if config.get(name)]:
        raise _unsupported(folder, f"{CONFIG} sets {', '.join(other)}")
    if (kind := config.get("peft_type")) != "LORA":
        raise _unsupported(folder, f"{CONFIG} says peft_type: {str(kind)[:80]}")
    began = config.get("init_lora_weights", True)
    if isinstance(began, str) and began not in _PLAIN_BEGINNINGS:
        why = f"{CONFIG} says init_lora_weights: {began[:80]}, which changes the base model too"
        raise _unsupported(folder, why)
    rank, alpha, base = (config.get(k) for k in ("r", "lora_alpha", "base_model_name_or_path"))
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _unsupported(folder, f"{CONFIG} lacks r, or it is no rank")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _unsupported(folder, f"{CONFIG} lacks lora_alpha, or it is no number")
    if not isinstance(base, str):
        raise _unsupported(folder, f"{CONFIG} lacks base_model_name_or_path")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = checked(folder, read_file(folder / TENSORS))
    if strange := [name for name in tensors if not _ours(name)]:
        raise _unsupported(folder, listing(strange))
    sides = {name: t.shape[0 if ".lora_A." in name else -1 :][:1] for name, t in tensors.items()}
    if odd := [name for name, side in sides.items() if side != (rank,)]:
        raise _unsupported(folder, f"{CONFIG} says r: {rank}, and other ranks have {listing(odd)}")
    held = {_ours(name): _turned(_ours(name), tensor) for name, tensor in tensors.items()}
    contents = RawCheckpoint(folder, "peft", held, in_files=tensors)
    if (folder / MODEL).is_file() and is_own(model := parse_json(folder / MODEL)):
        contents.fields = model
    describe(contents, folder)
    path = folder / base  # an absolute path stays as it is
    sealed = (contents.fields.get("base") or {}) if contents.fields else {}
    digest = sealed.get("sha256") if isinstance(sealed, dict) else None
    contents.base = Base(path, scale, digest if isinstance(digest, str) else None)
    return contents


def _ours(name: str) -> str:
    """The name of an adapter under that of its weight; "" if it is something else."""
    end = next((end for end in _ENDS if name.endswith(end)), None)
    if end is None or not name.startswith(_START):
        return ""
    return f"{name.removeprefix(_START).removesuffix(end)}.weight{_ENDS[end]}"


def _turned(name: str, tensor: Tensor) -> Tensor:
    """The transpose of a matrix, unread; its own inverse."""
    shape = tensor.shape[::-1]
    return Tensor(name, shape, tensor.dtype, lambda: np.ascontiguousarray(tensor.read().T))


def _unsupported(folder: Path, why: str) -> Problem:
    return Problem(
        "the folder holds an adapter that is not supported",
        where=str(folder),
        why=why,
        fix="merge it into its model with peft's merge_and_unload(), and save the result",
        exit_code=MISMATCH,
    )


def tensors_of(adapters: Adapters) -> list[Tensor]:
    """PEFT's tensors of adapters that have the names of transformers' weights, unread."""
    return [
        _turned(f"{_START}{name.removesuffix('.weight')}{end}", tensor)
        for name, pair in adapters.pairs.items()
        for end, tensor in zip(_ENDS, pair, strict=True)
    ]


def write(output: Output) -> None:
    """Writes the adapters; the base model stays where it is."""
    adapters = output.adapters
    assert adapters is not None  # by `check_format`
    rank = next(iter(adapters.pairs.values()))[0].shape[1]
    digests, _ = write_file(output.folder / TENSORS, tensors_of(adapters))
    output.digests |= digests
    base = adapters.base
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.path.absolute()),
        "r": rank,
        "lora_alpha": _plain(base.scale * rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name.removesuffix(".weight") for name in adapters.pairs],
        "fan_in_fan_out": output.inputs_first,
        "inference_mode": True,
    }
    model = {**output.description, "base": {"sha256": base.digest}}
    for name, value in ((CONFIG, config), (MODEL, model)):
        text = json.dumps(value, indent=2) + "\n"
        (output.folder / name).write_text(text, encoding="utf-8")
    (output.folder / "README.md").write_text(_card(str(base.path.absolute())), encoding="utf-8")


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _card(base: str) -> str:
    return f"""---
library_name: peft
tags: [lora, jaxmodels]
---

LoRA adapters for the model in `{base}`.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "PATH")
```
"""


FORMAT = Format(
    "peft",
    "a folder with LoRA adapters of PEFT, beside their base model",
    is_folder=is_folder,
    open_folder=open_folder,
    write=write,
    tables=("WEIGHTS",),
    file=lambda origin: TENSORS,
    moments=None,
    adapters=tensors_of,
)
