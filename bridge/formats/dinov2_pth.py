"""The state dicts of DINOv2's published code, `.pth`, and of timm.

Source: facebookresearch/dinov2: the released files, and training checkpoints, whose blocks may be
grouped in chunks; timm's `vision_transformer.py`, see `timm`.
"""

import re
from dataclasses import replace
from pathlib import Path

from bridge.core.tensors import Tensor
from bridge.core.twins import as_torch
from bridge.formats import timm
from bridge.formats.format import Format, Output
from bridge.formats.raw import RawCheckpoint
from bridge.formats.wrappers import without_words
from jaxmodels.errors import CORRUPT, Problem

NAME = "dinov2-pth"
FILE = "dinov2_pretrain.pth"
_MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight")  # in every file
# A block in a chunk keeps its number among all: blocks.1.7.norm1.bias is of block 7.
_CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(?=\d+\.)")


def understood(contents: RawCheckpoint, folder: Path) -> RawCheckpoint:
    """The contents, interpreted if the names are those of DINOv2's code or of timm.

    Args:
        contents: of a file or folder; returned unchanged if the names are others.
        folder: may have a `config.json` of timm.

    Raises:
        Problem: (corrupt) two blocks have one number; (mismatch) timm's config says another model.
    """
    given, contents = contents, without_words(contents)
    names = contents.tensors.keys()
    towers = [name.removesuffix(_MARKS[0]) for name in names if name.endswith(_MARKS[0])]
    towers = [tower for tower in towers if names >= {tower + mark for mark in _MARKS}]
    if not towers or contents.arch not in (None, "dinov2"):
        return given
    contents = replace(
        contents,
        arch="dinov2",
        table="UPSTREAM",
        format=NAME if contents.format == "torch" else contents.format,
        tensors=_unchunked(contents),
        notes=list(contents.notes),
    )
    if contents.tensors.keys() != names:
        contents.notes.append("the blocks lie in chunks, which are not kept")
    return timm.understood(contents, towers, folder)


def _unchunked(contents: RawCheckpoint) -> dict[str, Tensor]:
    new = {name: _CHUNKED.sub(r"\1blocks.", name) for name in contents.tensors}
    if len(set(new.values())) < len(new):
        raise Problem(
            "several blocks in the file have the same number",
            where=str(contents.path),
            why="the numbers of blocks must continue from chunk to chunk",
            fix="fetch or save the file again",
            exit_code=CORRUPT,
        )
    return {new[old]: replace(tensor, name=new[old]) for old, tensor in contents.tensors.items()}


def write(output: Output) -> None:
    """Writes the state dict that the published code loads; holds the whole model in memory."""
    import torch

    state = {name: as_torch(output.read(tensor)) for name, tensor in output.tensors.items()}
    torch.save(state, output.folder / FILE)


FORMAT = Format(
    NAME,
    "DINOv2's `.pth`",
    interpret=understood,
    write=write,
    needs="torch",
    arch="dinov2",
    file=lambda origin: FILE,
    moments=None,
)
