"""Adapters and their base model, merged into the tensors of one model."""

from dataclasses import asdict, replace

from bridge.checkpoint.checkpoint import Checkpoint
from bridge.core.adapters import Adapters, Base
from bridge.core.table import listing
from bridge.core.tensors import Tensor
from bridge.formats.raw import RawCheckpoint
from bridge.storage.stacks import unstack_blocks
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from jaxmodels.reading import digest
from jaxmodels.runtime.lora import A, B
from jaxmodels.runtime.manifest import MANIFEST


def check_base(base: Base, where: str) -> None:
    """Refuses a base model that is missing, or is not the one that the adapters were trained for.

    Raises:
        Problem: (mismatch) it is missing; (corrupt) it has changed.
    """
    if not base.path.exists():
        raise Problem(
            "these are LoRA adapters, and their base model is missing",
            where=where,
            why=f"it should be {base.path}",
            fix="put it there. Checkpoints of a run are opened inside of the run; adapters of PEFT "
            "name a folder in adapter_config.json (base_model_name_or_path), or can be merged "
            "with peft's merge_and_unload()",
            exit_code=MISMATCH,
        )
    manifest = base.path / MANIFEST
    if base.digest and (not manifest.is_file() or digest(manifest) != base.digest):
        raise Problem(
            "the base model is not the one that these adapters were trained for",
            where=str(base.path),
            why=f"the sha256 of its {MANIFEST} was {base.digest} when they were saved",
            fix="restore it from a copy",
            exit_code=CORRUPT,
        )


def adapted(contents: RawCheckpoint, source: Checkpoint) -> tuple[RawCheckpoint, Adapters]:
    """The contents of adapters as those of the whole model, under our names; and the adapters.

    Args:
        contents: adapters, and what else the run stores of the model.
        source: their base model.

    Raises:
        Problem: (mismatch) an adapter belongs to no matrix of the base model.
    """
    assert contents.base is not None
    held = unstack_blocks(contents.tensors, source.arch)
    pairs = _pairs(held, source, contents.path.name)
    manifest = contents.base.path / MANIFEST
    sealed = digest(manifest) if manifest.is_file() else None
    adapters = Adapters(replace(contents.base, digest=sealed), pairs)
    others = {n.replace(".", "/"): t for n, t in held.items() if not n.endswith((A, B))}
    tensors = {path: t for path, t in source.tensors.items() if path not in source.state} | others
    tensors |= {path: adapters.merged(path, tensors[path]) for path in pairs}
    whole = {path.replace("/", "."): tensor for path, tensor in tensors.items()}
    count = sum(tensor.size for pair in pairs.values() for tensor in pair)
    note = f"LoRA: {count:,} parameters adapt {len(pairs)} matrices of {source.path}"
    return (
        replace(
            contents,
            tensors={name: replace(tensor, name=name) for name, tensor in whole.items()},
            arch=source.arch,
            preset=contents.preset or source.preset,
            fields=contents.fields or asdict(source.config),
            tokenizer=contents.tokenizer or source.tokenizer,
            table="own",
            state=contents.state or _state(source),
            notes=[*contents.notes, note],
            base=None,
            averaged={},
        ),
        adapters,
    )


def _state(source: Checkpoint) -> dict[str, Tensor]:
    return {path.replace("/", "."): source.tensors[path] for path in source.state}


def _pairs(
    held: dict[str, Tensor], source: Checkpoint, where: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Our path → A and B, which may be named by our path or by the base's name of the weight."""
    named = {path.replace("/", "."): path for path in source.tensors}
    named |= {pair.theirs: pair.ours for pair in source.pairs}
    pairs, strange = {}, []
    for name, a in held.items():
        if not name.endswith(A):
            continue
        stem = name.removesuffix(A)
        b, path = held.get(stem + B), named.get(stem) or _ending(named, stem)
        if path and b is not None and _fits(a, b, source.tensors[path]):
            pairs[path] = (a, b)
        else:
            strange.append(name)
    if strange or not pairs:
        raise Problem(
            "the adapters are not those of their base model",
            where=where,
            why=listing(strange) if strange else "there are none",
            fix=f"name the model that they were trained for as their base, not {source.path}",
            exit_code=MISMATCH,
        )
    return pairs


def _fits(a: Tensor, b: Tensor, kernel: Tensor) -> bool:
    """Whether A B has as many numbers as a kernel."""
    matrices = len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[0]
    return matrices and a.shape[0] * b.shape[1] == kernel.size


def _ending(named: dict[str, str], stem: str) -> str | None:
    """The path of a name that is written with, or without, the prefix of the whole model."""

    def alike(name: str) -> bool:
        return stem.endswith(f".{name}") or name.endswith(f".{stem}")

    found = {path for name, path in named.items() if alike(name)}
    return found.pop() if len(found) == 1 else None
