"""Finds the weights in a folder of transformers: those that transformers would load."""

from pathlib import Path

from bridge.formats import deepspeed, gguf, model_files, torch_files
from bridge.formats.raw import RawCheckpoint
from bridge.storage import unsupported
from jaxmodels.errors import CORRUPT, Problem

# The files that transformers looks for in a folder; it loads the first that exists.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    torch_files.WEIGHTS,
    f"{torch_files.WEIGHTS}.index.json",
)


def open_weights(folder: Path) -> RawCheckpoint:
    """The weights in a folder: those that transformers would load, else the only ones."""
    held = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    file = held[0] if held else None
    if file is not None:
        unsupported.refuse(file, text=file.suffix == ".json")
    if model_files.is_folder(folder) if file is None else ".safetensors" in file.name:
        contents = RawCheckpoint(folder, "safetensors", model_files.tensors_in(folder, file))
    elif file is not None or torch_files.is_folder(folder):
        contents = torch_files.open_folder(folder, file)
    elif gguf.is_folder(folder):
        return gguf.open_folder(folder)
    elif deepspeed.is_folder(folder):
        contents = deepspeed.open_folder(folder)
    else:
        raise _without_weights(folder, torch_files.weight_files(folder))
    others = {path.name for path in [*held, *torch_files.weight_files(folder)] if path != file}
    if file is not None and others:
        names = ", ".join(sorted(others))
        contents.notes.append(f"{file.name} is read, as by transformers, and not {names}")
    return contents


def _without_weights(folder: Path, files: list[Path]) -> Problem:
    if files:
        return Problem(
            "it is unclear which file is the model",
            where=str(folder),
            why=f"there are {', '.join(path.name for path in files)}",
            fix="give one of the files",
            exit_code=CORRUPT,
        )
    found, fix = unsupported.found_in(folder)
    missing = f"there is neither a safetensors file nor {torch_files.WEIGHTS} in it"
    return Problem(
        "the folder has a config, but no weights that can be read",
        where=str(folder),
        why="\n".join([*found, missing]),
        fix=fix or "fetch all of its files",
        exit_code=CORRUPT,
    )
