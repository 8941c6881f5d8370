"""The state dicts of DINOv2's published code, `.pth`.

Source: facebookresearch/dinov2: the released files, and the teacher in a checkpoint of training,
whose blocks may lie in chunks.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bridge.contents import Contents
from bridge.moments import Moments
from bridge.tensors import Fingerprint, Tensor, fingerprint
from jaxmodels.errors import CORRUPT, Problem

FORMAT = "dinov2-pth"
FILE = "dinov2_pretrain.pth"
BACKBONE = "backbone."
_MARKS = {"cls_token", "pos_embed", "patch_embed.proj.weight"}  # in every file
# A block in a chunk keeps its number among all: blocks.1.7.norm1.bias is of block 7.
_CHUNKED = re.compile(r"blocks\.\d+\.(\d+\..*)")


def is_state(names: Iterable[str]) -> bool:
    """Whether tensors with these names are DINOv2's."""
    names = set(names)
    return names >= _MARKS or names >= {BACKBONE + name for name in _MARKS}


def contents(path: Path, tensors: dict[str, Tensor], notes: list[str]) -> Contents:
    """The tower in a state dict; the heads that training put beside it are left aside.

    Raises:
        Problem: (corrupt) two blocks have one number.
    """
    notes = list(notes)
    if not tensors.keys() >= _MARKS:
        aside = [name for name in tensors if not name.startswith(BACKBONE)]
        tensors = {n: tensor for n, tensor in tensors.items() if n not in aside}
        notes.append(f"the tower is {BACKBONE[:-1]!r} in the file")
        if aside:
            notes.append(f"left aside: {len(aside)} tensors of other modules, as {aside[0]}")
    named = {_name(name): name for name in tensors}
    if len(named) < len(tensors):
        raise Problem(
            "several blocks in the file have the same number",
            where=str(path),
            why="blocks in chunks must be numbered on from chunk to chunk",
            fix="fetch or save the file again",
            exit_code=CORRUPT,
        )
    if any(_CHUNKED.fullmatch(name.removeprefix(BACKBONE)) for name in tensors):
        notes.append("the blocks lie in chunks, which are not kept")
    found = {new: replace(tensors[old], name=new) for new, old in named.items()}
    return Contents(path, FORMAT, found, arch="dinov2", notes=notes, table="SEED")


def write_pth(
    folder: Path,
    tensors: dict[str, Tensor],
    config: Any,
    origin: dict[str, Any],
    moments: Moments | None,
    tell: Callable[[Tensor], None],
) -> dict[str, Fingerprint]:
    """Writes the state dict that the published code loads; holds the whole model in memory.

    Args:
        folder: an existing folder.
        tensors: the published name → tensor.
        config: dinov2's Config; the file does not say it.
        origin: what is known of the training; the file does not say it.
        moments: always None.
        tell: called after each tensor.

    Returns:
        name → {"dtype", "shape", digest}.
    """
    import torch

    from bridge.torch import to_torch

    state, digests = {}, {}
    for name, tensor in tensors.items():
        array = tensor.read()
        digests[name] = fingerprint(array)
        state[name] = to_torch(replace(tensor, read=partial(_same, array)))
        tell(tensor)
    torch.save(state, folder / FILE)
    return digests


def _name(name: str) -> str:
    return _CHUNKED.sub(r"blocks.\1", name.removeprefix(BACKBONE))


def _same(array: np.ndarray) -> np.ndarray:
    return array
