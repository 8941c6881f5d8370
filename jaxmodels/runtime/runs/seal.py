"""digests.json: what a run's files were when a call of `train` came to its end."""

import fnmatch
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jaxmodels.runtime.files import (
    MANIFEST,
    UNKNOWN,
    differing,
    digests,
    read_json,
    read_sealed,
    write_sealed,
)
from jaxmodels.runtime.runs.rundir import CONFIG, VOCABULARIES

DIGESTS, DATA = "digests.json", "data/"

CHECKPOINTS = "checkpoints/"  # which have manifests of their own

# What other verbs write into a run, whenever they are called; it is made of what is sealed.
_OTHERS = ("*.html", "find_lr.json", "find_lr.png")
# What a call of `train` goes on with; all else it makes anew.
_KEPT = (CONFIG, *VOCABULARIES, "tokenizer_config.json", "metrics.jsonl", "stats.jsonl")
_GROWING = ("tensorboard/*", "samples/*")
_DRAWN = DATA + "shapes/"  # which seals of earlier versions left out


def seal(run: Path) -> None:
    """Writes digests.json, when a call of `train` ends: the digest of every file of the run, and
    what was found to be damaged, also by a call that ended before it had unsealed the run."""
    damaged = damage_to_record(run)
    write_sealed(run / DIGESTS, {"files": digests(run, _ours(run)), "damaged": damaged})


def unseal(run: Path, damaged: list[str]) -> None:
    """Says that files change from now on; what was damaged until now stays known.

    Args:
        run: the run directory.
        damaged: what `damage_to_record` told, before anything was written.
    """
    if damaged:
        write_sealed(run / DIGESTS, {"damaged": damaged})
    else:
        (run / DIGESTS).unlink(missing_ok=True)


def recorded_damage(run: Path) -> list[str]:
    """What was damaged when an earlier call of `train` went on from it: one sentence a file."""
    try:
        found = read_sealed(run / DIGESTS).get("damaged", [])
    except (OSError, ValueError):
        return []
    return [str(line) for line in found] if isinstance(found, list) else []


def damage_to_record(run: Path) -> list[str]:
    """What is wrong with the files that a call of `train` is about to go on with, and what was
    wrong before: one sentence a file. Those that it makes anew, and the data, do not count."""
    found = _against_seal(run) or []
    lost = [line for line in found if not line.endswith(UNKNOWN) and _goes_on(line.split(" ")[0])]
    now = (f"{line}; training went on from it" for line in lost)
    return list(dict.fromkeys([*recorded_damage(run), *now]))


def _goes_on(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, like) for like in (DIGESTS, *_KEPT, *_GROWING))


def sealed(run: Path) -> bool:
    """Whether a call of `train` came to its end here, and none has begun since."""
    try:
        return "files" in read_sealed(run / DIGESTS)
    except ValueError:  # damaged
        return True
    except OSError:
        return False


def file_damage(run: Path) -> list[str] | None:
    """What is wrong with a run outside of `checkpoints`: one sentence a file; empty if sound.

    None where no call of `train` came to its end, or one is running: then nobody can say.
    """
    before, now = recorded_damage(run), _against_seal(run)
    if now is None:
        return before or None
    problems = before + now
    if now:
        return problems
    promised = _of_data(run)
    found = {
        name: entry["sha256"] for name, entry in digests(run / DATA, promised.__contains__).items()
    }
    return problems + [DATA + line for line in differing(promised, found)]


def _against_seal(run: Path) -> list[str] | None:
    """How the files that were sealed differ now; None where there is no seal."""
    if not sealed(run):
        return None
    ours = _ours(run)
    try:
        said = read_sealed(run / DIGESTS)
        promised = {name: entry for name, entry in said["files"].items() if ours(name)}
    except (OSError, ValueError, AttributeError) as error:
        return [f"{DIGESTS} is damaged ({error})"]
    early = "damaged" not in said
    found = digests(run, lambda name: ours(name) and not (early and name.startswith(_DRAWN)))
    return differing(promised, found)


def _ours(run: Path) -> Callable[[str], bool]:
    """Tells of a file whether a seal speaks of it. Of the data it is what the data's own manifests
    leave out."""
    told = _of_data(run)

    def ours(name: str) -> bool:
        if name.startswith(CHECKPOINTS) or name == DIGESTS:
            return False
        if any(part.startswith(".") for part in name.split("/")):
            return False
        if name.startswith(DATA):
            return name.removeprefix(DATA) not in told
        return not any(fnmatch.fnmatchcase(name, like) for like in _OTHERS)

    return ours


def _of_data(run: Path) -> dict[str, str]:
    """File → sha256, as the manifests of the run's data say, of which a mixture has several: those
    need not be hashed for each seal."""
    told: dict[str, str] = {}
    for manifest in sorted((run / DATA).rglob(MANIFEST)):
        with suppress(OSError, ValueError):
            said = read_json(manifest).get("sha256")
            below = manifest.parent.relative_to(run / DATA)
            if isinstance(said, dict):
                told |= {str(below / name): digest for name, digest in said.items()}
    return told
