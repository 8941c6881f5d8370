"""nanoGPT's checkpoint, `ckpt.pt`: model, optimiser, sizes, and the state of training.

Source: karpathy/nanoGPT, `train.py` (what is saved) and `model.py` (names).

The file is written in `torch.save`'s layout. Without moments it gets an optimiser in its initial
state, because nanoGPT's `resume` expects one.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

from bridge.core.tensors import Tensor
from bridge.formats.format import Format, Output
from bridge.formats.nanogpt_args import ARGS, fields, idle_notes
from bridge.formats.nanogpt_meta import DATASET, write_meta
from bridge.formats.nanogpt_meta import FILE as META
from bridge.formats.nanogpt_optimizer import HEAD, read_moments, scalar, state_dict
from bridge.formats.raw import RawCheckpoint, upstream_of, with_upstream
from bridge.legacy.torch_writer import write_torch
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.tokenizers import CharTokenizer, Tokenizer
from jaxmodels.errors import MISMATCH, Problem

FILE = "ckpt.pt"
EMBEDDING = "transformer.wte.weight"

# A checkpoint does not record which form of GELU its nanoGPT computed.
GELU_NOTE = (
    "nanoGPT computed the tanh form of GELU until June 2023: give --set gelu=tanh for a "
    "checkpoint from before"
)


def described(
    contents: RawCheckpoint, value: dict[str, Any], args: dict[str, Any]
) -> RawCheckpoint:
    """Contents of the kind nanoGPT, with what the file says.

    Args:
        contents: the tensors.
        value: the file's content.
        args: the model's arguments in it.

    Raises:
        Problem: (mismatch) there are arguments that nanoGPT does not have.
    """
    contents.format, contents.arch, contents.table = "nanogpt", "wikigpt", "UPSTREAM"
    contents.fields = fields(args, contents.path)
    contents.notes += idle_notes(args)
    contents.origin = origin(value)
    if "model_args" in value or "bias" in args:
        contents.notes.append(GELU_NOTE)
    else:  # build-nanogpt, which loads GPT-2's weights too, computes GELU as GPT-2 does
        contents.usual = {"gelu": "tanh" if value.keys() >= {"step", "val_loss"} else None}
    contents.moments = partial(
        read_moments, contents.path, contents.tensors, value.get("optimizer")
    )
    return contents


def origin(value: dict[str, Any]) -> dict[str, Any]:
    """The step, loss and settings of training."""
    kept = {"model_args": _plain(value.get("model_args")), "config": _plain(value.get("config"))}
    known: dict[str, Any] = with_upstream({}, "nanogpt", kept)
    if type(step := value.get("iter_num", value.get("step"))) is int:
        known["step"] = step
    loss = value.get("best_val_loss", value.get("val_loss"))
    if isinstance(loss, Tensor) and loss.size == 1:
        loss = loss.read().item()
    if isinstance(loss, int | float) and math.isfinite(loss):
        known["metrics"] = {"best_val_loss": float(loss)}
    return known


def check_config(config: Any, where: Path) -> None:
    """Checks that nanoGPT can compute a model; `where` names it in errors.

    Raises:
        Problem: (mismatch) it cannot.
    """
    complaints = []
    if config.gelu != "exact":
        complaints.append("gelu is the tanh form; nanoGPT computes the exact one")
    if config.hidden != 4 * config.dim:
        complaints.append(f"hidden is {config.hidden}; nanoGPT's is 4 × dim, {4 * config.dim}")
    if complaints:
        raise Problem(
            "nanoGPT cannot compute this model",
            where=str(where),
            why="; ".join(complaints),
            fix="use --to gpt2, whose config has both",
            exit_code=MISMATCH,
        )


def with_dataset(origin: dict[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The origin with a name for the dataset, if the model has characters.

    nanoGPT's `sample.py` takes GPT-2's tokens unless the checkpoint's `config` names a dataset
    that has a `meta.pkl`.
    """
    kept = upstream_of(origin, "nanogpt")
    config = _plain(kept.get("config"))
    if not isinstance(tokenizer, CharTokenizer) or config.get("dataset"):
        return origin
    return with_upstream(origin, "nanogpt", {**kept, "config": {**config, "dataset": DATASET}})


def notes_on(config: Any, origin: dict[str, Any], tokenizer: Tokenizer | None) -> list[str]:
    """What nanoGPT's `sample.py` needs in addition, or cannot do."""
    if isinstance(tokenizer, CharTokenizer):
        dataset = upstream_of(with_dataset(origin, tokenizer), "nanogpt")["config"]["dataset"]
        return [f"nanoGPT's sample.py looks for {META} in its folder data/{dataset}: copy it there"]
    if tokenizer is None or isinstance(tokenizer, GPT2Tokenizer):
        return []
    return [
        "nanoGPT's sample.py knows characters and GPT-2's tokens only: text needs tokenizer.json"
    ]


def write(output: Output) -> None:
    """Writes `ckpt.pt` as nanoGPT's `train.py` does, one tensor at a time, and the characters.

    Without `moments` the optimiser is in its initial state.
    """
    tensors = output.tensors
    origin = with_dataset(output.origin, output.tokenizer)
    # One tensor under two names, as in nanoGPT.
    state = {**tensors, HEAD: tensors[EMBEDDING]}
    optimizer = state_dict(tensors, output.moments)
    checkpoint = {"model": state, "optimizer": optimizer, **_beside(output.config, origin)}
    write_torch(output.folder / FILE, checkpoint, output.read)
    output.digests[HEAD] = output.digests[EMBEDDING]
    if isinstance(output.tokenizer, CharTokenizer):
        write_meta(output.folder / META, output.tokenizer)


def _beside(config: Any, origin: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's entries other than tensors, in nanoGPT's order."""
    kept = upstream_of(origin, "nanogpt")
    args = {name: getattr(config, field) for name, field in ARGS.items()}
    before = _plain(kept.get("model_args"))
    return {
        "model_args": {**{k: x for k, x in before.items() if k in args}, **args},
        "iter_num": origin.get("step", 0),
        "best_val_loss": scalar(_loss(origin)),
        "config": _plain(kept.get("config")),
    }


def _loss(origin: dict[str, Any]) -> float:
    """The best validation loss; 1e9, nanoGPT's initial value, if none is known."""
    metrics = origin.get("metrics")
    known = metrics if isinstance(metrics, dict) else {}
    loss = known.get("best_val_loss", known.get("valid_loss"))
    return float(loss) if isinstance(loss, int | float) else 1e9


def _plain(value: Any) -> dict[str, Any]:
    """The entries of a dict that JSON can hold unchanged."""
    items = value.items() if isinstance(value, dict) else ()
    plain = str | int | float | bool | None
    return {key: item for key, item in items if isinstance(key, str) and isinstance(item, plain)}


FORMAT = Format(
    "nanogpt",
    write=write,
    needs="torch",
    arch="wikigpt",
    file=lambda origin: FILE,
    check=check_config,
    notes=notes_on,
)
