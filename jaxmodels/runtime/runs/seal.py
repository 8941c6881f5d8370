"""digests.json: the digests of a run's files when a call of `train` ended (its seal).

Like a manifest it ends with a digest of itself, so that no bit of a run is outside a digest.
"""

import fnmatch
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jaxmodels.reading import read_json
from jaxmodels.runtime.manifest import MANIFEST, UNKNOWN, differing, digests, read_sealed, write_sealed
from jaxmodels.runtime.runs.rundir import CONFIG, VOCABULARIES

DIGESTS, DATA = "digests.json", "data/"

CHECKPOINTS = "checkpoints/"  # have manifests of their own

# Written into a run by other commands at any time, from sealed files.
_DERIVED = ("*.html", "find_lr.json", "find_lr.png", "wandb/*")
# Files that a resumed call of `train` reads or extends; it rewrites all others.
_KEPT = (CONFIG, *VOCABULARIES, "tokenizer_config.json", "metrics.jsonl", "stats.jsonl")
_GROWING = ("tensorboard/*", "samples/*")
_SHAPES = DATA + "shapes/"  # seals of earlier versions lack it


def seal(run: Path) -> None:
    """Writes digests.json when a call of `train` ends: the digest of every file of the run, and the
    damage found, also by a call that ended before it had unsealed the run."""
    damaged = damage_to_record(run)
    write_sealed(run / DIGESTS, {"files": digests(run, _is_sealed(run)), "damaged": damaged})


def unseal(run: Path, damaged: list[str]) -> None:
    """Removes the seal before files change; damage found until now stays on record.

    Args:
        run: the run directory.
        damaged: by `damage_to_record`, before anything was written.
    """
    if damaged:
        write_sealed(run / DIGESTS, {"damaged": damaged})
    else:
        (run / DIGESTS).unlink(missing_ok=True)


def recorded_damage(run: Path) -> list[str]:
    """Damage that earlier calls of `train` found when they resumed: one sentence a file."""
    try:
        found = read_sealed(run / DIGESTS).get("damaged", [])
    except (OSError, ValueError):
        return []
    return [str(line) for line in found] if isinstance(found, list) else []


def damage_to_record(run: Path) -> list[str]:
    """What is wrong with the files that a call of `train` is about to resume from, and what was
    wrong before: one sentence a file. Files that it rewrites, and the data, do not count."""
    found = _against_seal(run) or []
    lost = [line for line in found if not line.endswith(UNKNOWN) and _is_resumed_from(line.split(" ")[0])]
    now = (f"{line}; training went on from it" for line in lost)
    return list(dict.fromkeys([*recorded_damage(run), *now]))


def _is_resumed_from(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, like) for like in (DIGESTS, *_KEPT, *_GROWING))


def sealed(run: Path) -> bool:
    """Whether a call of `train` has ended here, and none has started since."""
    try:
        return "files" in read_sealed(run / DIGESTS)
    except ValueError:  # damaged
        return True
    except OSError:
        return False


def file_damage(run: Path) -> list[str] | None:
    """What is wrong with a run outside of `checkpoints`: one sentence a file; empty if sound.

    None, unknown, if no call of `train` has ended, or one is running.
    """
    before, now = recorded_damage(run), _against_seal(run)
    if now is None:
        return before or None
    problems = before + now
    if now:
        return problems
    promised = _data_digests(run)
    found = {
        name: entry["sha256"] for name, entry in digests(run / DATA, promised.__contains__).items()
    }
    return problems + [DATA + line for line in differing(promised, found)]


def _against_seal(run: Path) -> list[str] | None:
    """How the sealed files differ now; None if there is no seal."""
    if not sealed(run):
        return None
    ours = _is_sealed(run)
    try:
        stored = read_sealed(run / DIGESTS)
        promised = {name: entry for name, entry in stored["files"].items() if ours(name)}
    except (OSError, ValueError, AttributeError) as error:
        return [f"{DIGESTS} is damaged ({error})"]
    early = "damaged" not in stored
    found = digests(run, lambda name: ours(name) and not (early and name.startswith(_SHAPES)))
    return differing(promised, found)


def _is_sealed(run: Path) -> Callable[[str], bool]:
    """A predicate: whether a file belongs in the seal. Of the data, only files that the data's own
    manifests do not cover."""
    covered = _data_digests(run)

    def ours(name: str) -> bool:
        if name.startswith(CHECKPOINTS) or name == DIGESTS:
            return False
        if any(part.startswith(".") for part in name.split("/")):
            return False
        if name.startswith(DATA):
            return name.removeprefix(DATA) not in covered
        return not any(fnmatch.fnmatchcase(name, like) for like in _DERIVED)

    return ours


def _data_digests(run: Path) -> dict[str, str]:
    """File → sha256 by the manifests of the run's data (several for a mixture), which spare
    hashing the data for each seal."""
    covered: dict[str, str] = {}
    for manifest in sorted((run / DATA).rglob(MANIFEST)):
        with suppress(OSError, ValueError):
            stored = read_json(manifest).get("sha256")
            below = manifest.parent.relative_to(run / DATA)
            if isinstance(stored, dict):
                covered |= {str(below / name): digest for name, digest in stored.items()}
    return covered
