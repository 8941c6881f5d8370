"""Words that wrappers leave in the names of a saved module: taken off, and said."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import jaxmodels
from bridge.contents import Contents
from bridge.moments import Moments
from bridge.tensors import Tensor

# In front of every name.
PREFIXES = {
    "module.": "torch's DataParallel or DistributedDataParallel",
    "model.": "a wrapping module",
}
# Anywhere: a part of the model may be wrapped by itself.
WORDS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "torch's FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "torch's activation checkpointing",
}


def unwrapped(contents: Contents) -> Contents:
    """The contents under the names of the module inside, with a note on each word taken off.

    A prefix that the tables of some architecture have stays.
    """
    names, notes = list(contents.tensors), []
    short, found = _without_words(names)
    notes += [f"{word!r} in names, left by {WORDS[word]}, was removed" for word in found]
    while prefix := _prefix(short):
        short = [name.removeprefix(prefix) for name in short]
        notes.append(f"the prefix {prefix!r}, left by {PREFIXES[prefix]}, was removed")
    if not notes or len(set(short)) < len(names):
        return contents
    new = dict(zip(names, short, strict=True))

    def renamed(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {new.get(n, n): replace(t, name=new.get(n, n)) for n, t in held.items()}

    def moments() -> Moments | None:
        held = contents.moments()
        return held and held.mapped(renamed)

    return replace(
        contents,
        tensors=renamed(contents.tensors),
        notes=[*contents.notes, *notes],
        moments=moments,
    )


def _without_words(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names without WORDS, and which of them were there."""
    parts = [name.split(".") for name in names]
    found = [word for word in WORDS if any(word in words for words in parts)]
    return [".".join(w for w in words if w not in WORDS) for words in parts], found


def _prefix(names: list[str]) -> str:
    """The first of PREFIXES that all names carry and no table has; empty when there is none."""
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names) and not _known(prefix):
            return prefix
    return ""


def _known(prefix: str) -> bool:
    packages = [jaxmodels.arch(name) for name in jaxmodels.ARCHS]
    return any(
        theirs.startswith(prefix)
        for package in packages
        for rows in (package.WEIGHTS, getattr(package, "SEED", ()))
        for _, theirs, _ in rows
    )
