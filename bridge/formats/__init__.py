"""The checkpoint formats: how each is recognised and read, and how the seeds' own are written."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bridge.formats import (
    bwetaf,
    deepspeed,
    dinov2_pth,
    gguf,
    model_files,
    orbax_folders,
    runs,
    torch_files,
    transformers_folder,
    wigip,
)
from bridge.formats.foreign import code_beside, refuse_strange
from bridge.formats.raw import RawCheckpoint, changed, complete
from bridge.sandbox import client
from bridge.storage import unsupported
from bridge.storage.safetensors_reader import looks_like_safetensors
from jaxmodels.cli import visible
from jaxmodels.errors import CORRUPT, Problem

FORMATS = """a model directory or safetensors file; an Orbax checkpoint (a tree, a step, or the \
folder of a CheckpointManager); a run directory \
of `jaxmodels train`, or one of its checkpoints; a GPT-2 or DINOv2 folder of transformers; a \
nanoGPT checkpoint (`ckpt.pt`, or the folder that holds it), BitGen Stage 1's (`checkpoint-N.pt`, \
`pytorch_model.bin`), DeepSpeed's folders, DINOv2's `.pth` or another torch file of named tensors; \
a bwetaf folder; wigip's `step_N.zip`, or a folder of them; a GGUF file of the architecture gpt2, \
or a folder with one"""


class Format(NamedTuple):
    """How one format is recognised and opened."""

    name: str
    """As in `jaxmodels convert --to`."""
    matches: Callable[[Path], bool]
    """Whether a file, or a folder, is one; it never raises for strange content."""
    open: Callable[[Path], RawCheckpoint]


# The first that matches.
_FILES = (
    Format("safetensors", looks_like_safetensors, model_files.open_file),
    Format("nanogpt", torch_files.is_file, torch_files.open_file),
    Format("wigip-zip", wigip.is_file, wigip.open_file),
    Format("gguf", gguf.is_file, gguf.open_file),
    Format("bwetaf", bwetaf.is_file, bwetaf.open_file),
)
_FOLDERS = (
    Format("orbax", runs.is_run, runs.open_run),
    Format("orbax", runs.is_step, runs.open_step),
    Format("orbax", orbax_folders.is_folder, orbax_folders.open_folder),
    Format("bwetaf", bwetaf.is_folder, bwetaf.open_folder),
    Format("transformers", transformers_folder.is_folder, transformers_folder.open_folder),
    Format("safetensors", model_files.is_folder, model_files.open_folder),
    Format("torch", deepspeed.is_folder, deepspeed.open_folder),
    Format("nanogpt", torch_files.is_folder, torch_files.open_folder),
    Format("wigip-zip", wigip.is_folder, wigip.open_folder),
    Format("gguf", gguf.is_folder, gguf.open_folder),
)


def recognise(path: Path) -> RawCheckpoint:
    """Finds out what lies at a path, without reading the values of tensors.

    Raises:
        Problem: (corrupt) nothing there, nothing known, or damaged; (unsafe) a file that asks
            to run code, or a zip that is built to mislead.
    """
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    refuse_strange(path)
    if path.name.endswith(".distcp"):  # files that torch.save wrote, one behind the other
        raise unsupported.problem(path, unsupported.DISTRIBUTED)
    if found := _format(path):
        contents = found.open(path)
        folder = path if path.is_dir() else path.parent
        contents = transformers_folder.with_config(contents, folder)
        contents = dinov2_pth.understood(contents, folder)
        contents.notes += code_beside(path) if path.is_dir() else []
        contents.damaged = changed(path) if path.is_dir() else []
        if not contents.damaged:
            complete(contents, path)
        return contents
    fix = f"known are {FORMATS}"
    if path.is_file():
        unsupported.refuse(path)
        start = _start(path)
        if start.startswith(b"PK"):
            client.read("check", path)  # says what is wrong with it, if something is
        why = f"its first bytes are {start!r}; it has {path.stat().st_size}"
    else:
        said, advice = unsupported.found_in(path)
        names = sorted(visible(file.name) for file in path.iterdir())[:10]
        held = f"it holds: {', '.join(names) or 'nothing'}"
        why, fix = "\n".join([*said, held]), advice or fix
    raise Problem(
        "this is not a checkpoint of a known format",
        where=str(path),
        why=why,
        fix=fix,
        exit_code=CORRUPT,
    )


def kind(path: Path) -> str | None:
    """The format that a path seems to have, even when it is damaged."""
    found = _format(path)
    if found and found.open is transformers_folder.open_folder:
        return transformers_folder.format_in(path)
    return found.name if found else None


def _format(path: Path) -> Format | None:
    known = _FILES if path.is_file() else _FOLDERS if path.is_dir() else ()
    return next((entry for entry in known if entry.matches(path)), None)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
