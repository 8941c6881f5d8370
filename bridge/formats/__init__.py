"""The registry of checkpoint formats. To add one, write a module that ends in its `Format` record,
and list that in FORMATS.
"""

from pathlib import Path

from bridge import sandbox
from bridge.formats import (
    bitgen,
    bwetaf,
    deepspeed,
    dinov2_pth,
    gguf,
    model_files,
    onnx,
    orbax_folders,
    packed,
    peft,
    runs,
    torch_files,
    transformers_folder,
    wigip,
)
from bridge.formats.foreign import code_beside, refuse_strange
from bridge.formats.format import Format
from bridge.formats.raw import RawCheckpoint, changed, complete
from bridge.storage import unsupported
from jaxmodels.cli import visible
from jaxmodels.errors import CORRUPT, USAGE, Problem

# The first that recognises a file or folder opens it.
FORMATS: tuple[Format, ...] = (
    runs.FORMAT,
    runs.STEP,
    orbax_folders.FORMAT,
    bwetaf.FORMAT,
    peft.FORMAT,
    transformers_folder.FORMAT,
    model_files.FORMAT,
    packed.FORMAT,
    deepspeed.FORMAT,
    torch_files.FORMAT,
    wigip.FORMAT,
    gguf.FORMAT,
    bwetaf.FILE,
    bitgen.FORMAT,
    dinov2_pth.FORMAT,
    onnx.FORMAT,
)


def targets() -> dict[str, Format]:
    """Name → format, of all that `convert --to` can write; the first of those with one name."""
    found: dict[str, Format] = {}
    for format in sorted((*FORMATS, *transformers_folder.targets()), key=lambda f: not f.pytorch):
        if format.is_target:
            found.setdefault(format.name, format)
    return found


def target(name: str) -> Format:
    """The format that `--to` names.

    Raises:
        Problem: (usage) there is none.
    """
    if name not in (known := targets()):
        why = f"known: {', '.join(known)}"
        raise Problem(f"--to cannot be {name!r}", why=why, exit_code=USAGE)
    return known[name]


def recognise(path: Path) -> RawCheckpoint:
    """Finds out what a file or folder is, without reading the values of tensors.

    Raises:
        Problem: (corrupt) it does not exist, is of no known format, or is damaged; (unsafe) it is
            a file that asks to run code, or a zip built to mislead.
    """
    if not path.exists():
        raise Problem("no such file or folder", where=str(path), fix="check the path")
    refuse_strange(path)
    if path.name.endswith(".distcp"):  # several torch.save files, concatenated
        raise unsupported.problem(path, unsupported.DISTRIBUTED)
    if (format := _format(path)) is None:
        raise _unknown(path)
    opened = format.open_file if path.is_file() else format.open_folder
    assert opened is not None  # `_format` returns no other
    contents, folder = opened(path), path if path.is_dir() else path.parent
    for each in FORMATS:
        if each.interpret:
            contents = each.interpret(contents, folder)
    contents.notes += code_beside(path) if path.is_dir() else []
    contents.damaged = changed(path) if path.is_dir() else []
    if not contents.damaged:
        complete(contents, path)
    return contents


def kind(path: Path) -> str | None:
    """The name of the format that a path seems to have, even when it is damaged."""
    if (found := _format(path)) is None:
        return None
    return found.name_in(path) if found.name_in else found.name


def misnamed(path: Path) -> str | None:
    """The format of a file whose extension belongs to other formats only; else None."""
    ending, found = path.suffix.lower(), kind(path)
    expected = {format.name for format in FORMATS if ending in format.endings}
    return found if path.is_file() and expected and found not in expected else None


def _format(path: Path) -> Format | None:
    for format in FORMATS:
        matches = format.is_file if path.is_file() else format.is_folder if path.is_dir() else None
        if matches and matches(path):
            return format
    return None


def _unknown(path: Path) -> Problem:
    whats = [format.what for format in (*FORMATS, *transformers_folder.targets()) if format.what]
    fix = f"known are {'; '.join(whats)}"
    if path.is_file():
        unsupported.refuse(path)
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(b"PK"):
            sandbox.read("check", path)  # reports what is wrong with it, if something is
        why = f"its first bytes are {start!r}; it has {path.stat().st_size}"
    else:
        found, advice = unsupported.found_in(path)
        names = sorted(visible(file.name) for file in path.iterdir())[:10]
        why = "\n".join([*found, f"it holds: {', '.join(names) or 'nothing'}"])
        fix = advice or fix
    return Problem(
        "this is not a checkpoint of a known format",
        where=str(path),
        why=why,
        fix=fix,
        exit_code=CORRUPT,
    )
