"""What a conversion can write, and how each of them is written into an empty folder."""

from collections.abc import Callable
from pathlib import Path

from bridge.checkpoint.opening import Checkpoint
from bridge.conversion.kept_shards import write_shards
from bridge.conversion.model_directory import complete, describe_model, promise
from bridge.conversion.plan import PYTORCH, ConversionPlan
from bridge.core.moments import Moments
from bridge.core.tensors import FLOATS, Tensor, is_float
from bridge.core.twins import transformers_classes, twin
from bridge.formats import bitgen, bwetaf, dinov2_pth, gguf, model_files, nanogpt, wigip
from bridge.formats.nanogpt_meta import FILE as META
from bridge.formats.nanogpt_meta import write_meta
from bridge.storage import orbax
from data_pipelines.tokenizers import CharTokenizer
from jaxmodels.errors import USAGE, Problem

# Target → the only architecture that has it; "" where all do.
TARGETS = {
    "safetensors": "",
    "orbax": "",
    "nanogpt": "wikigpt",
    "bwetaf": "bwetaf",
    "wigip-zip": "wigip",
    "bitgen": "bitgen_stage1",
    "dinov2-pth": "dinov2",
    "gguf": "wikigpt",
}
TARGETS |= {cls.format: arch for arch, cls in transformers_classes()}
WRITERS = {
    "nanogpt": nanogpt.write_nanogpt,
    "bwetaf": bwetaf.write_bwetaf,
    "wigip-zip": wigip.write_wigip,
    "bitgen": bitgen.write_bitgen,
    "dinov2-pth": dinov2_pth.write_pth,
}
CHECKS = {
    "nanogpt": nanogpt.check_config,
    "bwetaf": bwetaf.check_config,
    "wigip-zip": wigip.check_config,
    "bitgen": bitgen.check_config,
}


def check_target(to: str, source: Checkpoint) -> None:
    """Checks that a target can hold a model, before anything is created.

    Raises:
        Problem: (usage) its architecture has no such target; (mismatch) the target's own code
            cannot compute this one.
    """
    if TARGETS[to] not in ("", source.arch):
        raise Problem(
            f"--to {to} is for {TARGETS[to]}, and this is {source.arch}",
            where=str(source.path),
            fix="use --to safetensors",
            exit_code=USAGE,
        )
    if to in PYTORCH:
        twin(source.arch).keys(source.config)  # raises where its class cannot hold the sizes
    if to == "gguf":
        gguf.library()
    if to in CHECKS:
        CHECKS[to](source.config, source.path)


def write_target(
    folder: Path,
    source: Checkpoint,
    to: str,
    plan: ConversionPlan,
    moments: Moments | None,
    tell: Callable[[Tensor], None],
    parts: Path | None = None,
) -> list[str]:
    """Writes a whole output, with the tokeniser's file if the model has one.

    Args:
        folder: an empty folder.
        source: the model, one that passed `check_target`.
        to: one of `TARGETS`.
        plan: its tensors under their new names.
        moments: AdamW's state under the target's names.
        tell: called after each tensor.
        parts: where finished shards wait, see `bridge.conversion.kept_shards`.

    Returns:
        what is to be said of it.
    """
    notes = []
    files: dict[str, str] = {}  # those whose sha256 is known
    if to in PYTORCH:
        trained = (t for path, t in plan.ours.items() if path not in source.state)
        dtypes = {str(t.dtype) for t in trained if is_float(t.dtype)}
        digests, files, there = write_shards(folder, parts, plan, tell)
        if there:
            notes.append(f"{there} of {len(plan.shards)} shards were finished by an earlier call")
        dtype = dtypes.pop() if len(dtypes) == 1 else FLOATS[0]
        complete(folder, source, dtype, to, plan.notes)
        if moments is not None:
            files |= model_files.write_moments(folder, moments)
    elif to == "orbax":
        digests = orbax.write_tree(folder, plan.shards[""], tell)
        describe_model(folder, source, "")
    elif to == "gguf":
        digests = gguf.write_gguf(
            folder, plan.tensors, source.config, source.tokenizer, plan.quantised, tell
        )
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
    else:
        write, origin = WRITERS[to], source.origin
        if to == "nanogpt":
            origin = nanogpt.with_dataset(origin, source.tokenizer)
        digests = write(folder, plan.tensors, source.config, origin, moments, tell)
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
        if to == "nanogpt" and isinstance(source.tokenizer, CharTokenizer):
            write_meta(folder / META, source.tokenizer)
    promise(folder, source, digests, files)
    return notes
