"""Inputs for the commands of the pages: texts, images, and other programs' checkpoints."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

from tests.jaxmodels import scenes

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = "It was the best of times, it was the worst of times.\n" * 60
PLAY = "ROMEO:\nBut soft, what light?\n\nJULIET:\nAy me!\n\n" * 60


def _books(path: Path) -> None:
    path.mkdir()
    (path / "one.txt").write_text(TEXT)


def _other(path: Path) -> None:
    path.write_text(TEXT)


def _web(path: Path) -> None:
    path.write_text(json.dumps({"body": TEXT}) + "\n")


def _nanogpt(path: Path) -> None:
    shutil.copytree(GOLDEN / "nanogpt_bias", path)


def _letters(path: Path) -> None:
    """As many as the golden nanoGPT knows."""
    path.write_text(json.dumps([chr(code) for code in range(32, 128)] + ["\n"]))


def _wigip(path: Path) -> None:
    shutil.copy(GOLDEN / "wigip" / "step_7.zip", path)


def _tower(path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).save_pretrained(path)


def _photos(path: Path) -> None:
    scenes.folder(path)


def _prepared(path: Path) -> None:
    """nanoGPT's `data/shakespeare_char`, as its prepare.py leaves it."""
    path.mkdir(parents=True)
    chars = sorted(set(PLAY))
    stoi = {char: i for i, char in enumerate(chars)}
    ids = np.array([stoi[char] for char in PLAY], np.uint16)
    cut = int(0.9 * len(ids))
    (path / "input.txt").write_text(PLAY)
    ids[:cut].tofile(path / "train.bin")
    ids[cut:].tofile(path / "val.bin")
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}
    (path / "meta.pkl").write_bytes(pickle.dumps(meta))


def _trained(path: Path) -> None:
    """nanoGPT's `out_dir`, of the golden model with the rows of PLAY's characters."""
    value: dict[str, Any] = torch.load(GOLDEN / "nanogpt_bias" / "ckpt.pt", weights_only=True)
    rows = len(set(PLAY))
    state = value["model"] = {
        name: tensor[:rows].clone() if name.endswith(("wte.weight", "lm_head.weight")) else tensor
        for name, tensor in value["model"].items()
    }
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    value["model_args"]["vocab_size"] = rows
    value["config"] = {"dataset": "shakespeare_char", "out_dir": path.name}
    value["optimizer"] = _adamw([x for name, x in state.items() if "lm_head" not in name])
    path.mkdir()
    torch.save(value, path / "ckpt.pt")


def _adamw(tensors: list[torch.Tensor]) -> dict[str, Any]:
    """AdamW's state after a step, in nanoGPT's two groups: matrices, then vectors."""
    matrices = [torch.nn.Parameter(x.clone()) for x in tensors if x.dim() >= 2]
    vectors = [torch.nn.Parameter(x.clone()) for x in tensors if x.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for parameter in (*matrices, *vectors):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def _questions(path: Path) -> None:
    path.write_text(json.dumps({"context": "The", "choices": ["value", "zzz"], "answer": 0}))


MATERIAL: dict[str, Callable[[Path], None]] = {
    "books": _books,
    "other.txt": _other,
    "web.jsonl": _web,
    "out": _nanogpt,
    "letters.json": _letters,
    "questions.jsonl": _questions,
    "step_7.zip": _wigip,
    "dinov2-small": _tower,
    "photos": _photos,
    "data/shakespeare_char": _prepared,
    "out-shakespeare-char": _trained,
}
"""Path → what makes it."""
