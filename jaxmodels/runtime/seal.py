"""digests.json: what a run's files were when a call of `train` came to its end."""

import fnmatch
from collections.abc import Callable
from pathlib import Path

from jaxmodels.runtime.files import (
    MANIFEST,
    differing,
    digests,
    read_json,
    read_sealed,
    write_sealed,
)
from jaxmodels.runtime.rundir import CONFIG, VOCABULARIES

DIGESTS, DATA = "digests.json", "data/"

# What `train` writes, but for the checkpoints, which have manifests of their own. Whatever else
# lies in a run (a report, a plot of learning rates, somebody's notes) is none of the seal's affair.
_DRAWN = ("loss.png", "metrics.png", "stats.png", "summary.json")  # made anew by each call
_KEPT = (CONFIG, *VOCABULARIES, "tokenizer_config.json", "metrics.jsonl", "stats.jsonl")
_GROWING = ("tensorboard/*", "samples/*", "profile/*")


def seal(run: Path) -> None:
    """Writes digests.json, when a call of `train` ends: the digest of every file that it wrote,
    and what an earlier call found to be damaged."""
    write_sealed(run / DIGESTS, {"files": digests(run, _ours(run)), "damaged": damaged_before(run)})


def unseal(run: Path, damaged: list[str]) -> None:
    """Says that files change from now on; what was damaged until now stays known.

    Args:
        run: the run directory.
        damaged: what `damage_to_keep` told, before anything was written.
    """
    if damaged:
        write_sealed(run / DIGESTS, {"damaged": damaged})
    else:
        (run / DIGESTS).unlink(missing_ok=True)


def damaged_before(run: Path) -> list[str]:
    """What was damaged when an earlier call of `train` went on from it: one sentence a file."""
    try:
        found = read_sealed(run / DIGESTS).get("damaged", [])
    except (OSError, ValueError):
        return []
    return [str(line) for line in found] if isinstance(found, list) else []


def damage_to_keep(run: Path) -> list[str]:
    """What is wrong with the files that a call of `train` is about to extend, and what was wrong
    before: one sentence a file. Those that it makes anew, and the data, do not count."""
    wrong = [line for line in _against_seal(run) or [] if not line.startswith((*_DRAWN, DATA))]
    now = (f"{line}; training went on from it" for line in wrong)
    return list(dict.fromkeys([*damaged_before(run), *now]))


def sealed(run: Path) -> bool:
    """Whether a call of `train` came to its end here, and none has begun since."""
    try:
        return "files" in read_sealed(run / DIGESTS)
    except ValueError:  # damaged
        return True
    except OSError:
        return False


def loose_damage(run: Path) -> list[str] | None:
    """What is wrong with a run outside of `checkpoints`: one sentence a file; empty if sound.

    None where no call of `train` came to its end, or one is running: then nobody can say.
    """
    before, now = damaged_before(run), _against_seal(run)
    if now is None:
        return before or None
    problems = before + now
    if now or not (run / DATA / MANIFEST).is_file():
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
        files = read_sealed(run / DIGESTS)["files"]
        promised = {name: entry for name, entry in files.items() if ours(name)}
    except (OSError, ValueError, AttributeError) as error:
        return [f"{DIGESTS} is damaged ({error})"]
    # A sample more is no damage; a second vocabulary is.
    return differing(promised, digests(run, lambda n: n in promised or n in _KEPT))


def _ours(run: Path) -> Callable[[str], bool]:
    """Tells of a file whether a seal speaks of it. Of the data it is what the data's own manifest
    leaves out."""
    told = _of_data(run)

    def ours(name: str) -> bool:
        if any(part.startswith(".") for part in name.split("/")):
            return False
        if name.startswith(DATA):
            return name.removeprefix(DATA) not in told
        return any(fnmatch.fnmatchcase(name, like) for like in (*_DRAWN, *_KEPT, *_GROWING))

    return ours


def _of_data(run: Path) -> dict[str, str]:
    """File → sha256, as the manifest of the run's data says; empty where it says nothing."""
    try:
        said = read_json(run / DATA / MANIFEST).get("sha256")
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
