"""Manifests: digests of a folder's files, which find what the disk got wrong."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxmodels.files import files_below, write_text
from jaxmodels.reading import MAX_JSON, digest, json_object, read_limited

MANIFEST = "manifest.json"
UNKNOWN = "is not in the manifest"
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"\n}\n')


def digests(
    folder: Path,
    wanted: Callable[[str], bool] = lambda name: name != MANIFEST,
    known: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Relative path → bytes and sha256 of every file in a folder except its manifest.

    Files whose sha256 is `known` are not read.
    """
    return {
        name: {"bytes": path.stat().st_size, "sha256": known.get(name) or digest(path)}
        for path in files_below(folder)
        if wanted(name := str(path.relative_to(folder)))
    }


def write_manifest(
    folder: Path, content: dict[str, Any], known: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a folder's manifest: `content`, the digests of all files, and a seal on itself.

    `known` as in `digests`: what was hashed while it was written.
    """
    write_sealed(folder / MANIFEST, {**content, "files": digests(folder, known=known)})


def with_digest(manifest: Path, name: str, content: bytes) -> bytes | None:
    """The text of a manifest after a file in its folder became `content`; None if it was that.

    Raises:
        OSError, ValueError: as `read_sealed`.
    """
    value = read_sealed(manifest)
    row = {"bytes": len(content), "sha256": _hash(content)}
    if value["files"].get(name) == row:
        return None
    others = {key: each for key, each in value.items() if key not in ("files", "seal")}
    return sealed({**others, "files": {**value["files"], name: row}}).encode()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes the text of `sealed`."""
    write_text(path, sealed(value))


def sealed(value: dict[str, Any]) -> str:
    """A JSON object with a last entry `seal`: the sha256 of everything before it."""
    text = json.dumps({**value, "seal": ""}, indent=2) + "\n"
    before, behind = text[:-4], text[-4:]
    return before + hashlib.sha256(before.encode()).hexdigest() + behind


def read_sealed(path: Path) -> dict[str, Any]:
    """The JSON object in a file of `write_sealed`.

    Raises:
        OSError: there is no such file.
        ValueError: something in it has changed since, be it one bit.
    """
    text = read_limited(path, MAX_JSON)
    value = json_object(text)
    if not value:
        raise ValueError("it is empty")
    last = list(value.values())[-1]
    # Files from before there were seals end differently.
    if isinstance(last, str) and len(last) == 64:
        found = _SEAL.search(text, max(0, len(text) - 100))
        if found is None or found.end() != len(text) or _hash(text[: found.start(1)]) != last:
            raise ValueError("its seal is broken")
    return value


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def damage(folder: Path) -> list[str]:
    """What is wrong with a folder that carries a manifest: one sentence a file; empty if sound."""
    try:
        promised = read_sealed(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} is damaged ({error if str(error) else type(error).__name__})"]
    return differing(promised, digests(folder))


def differing(promised: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """How files differ from what was promised of them: one sentence a file.

    Args:
        promised: name → digest, as a manifest has it.
        found: name → digest, as the files are.
    """
    return [
        *(f"{name} is missing" for name in promised if name not in found),
        *(f"{name} {UNKNOWN}" for name in found if name not in promised),
        *(
            f"{name} is damaged (its sha256 is not the one in the manifest)"
            for name in promised
            if name in found and found[name] != promised[name]
        ),
    ]
